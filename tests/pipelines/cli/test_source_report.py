"""The rows of a recipe's files, as `triptych run --plan` counts them."""

import io
import json
from itertools import count
from pathlib import Path

from rich.console import Console

from cluster.recipe.loading import load_recipe
from pipelines.cli.source_report import count_rows, print_sources


def test_all_rows_are_counted_and_the_first_bad_ones_named(recipe_path: Path) -> None:
    folder = recipe_path.parent
    good = {"prompt": "Why?", "response": "So."}
    rows = [good] * 30 + [{"prompt": "Why?"}] * 5
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    chats = f"[{{path: {folder}/chats.jsonl}}]"
    changes = [f"sft.sources={chats}", f"collect.sources={chats}", f"corpus.sources.0.path={folder}/text.jsonl"]
    recipe = load_recipe(recipe_path, changes)
    console = Console(width=200, record=True, file=io.StringIO())
    print_sources(recipe, console)
    shown = console.export_text()
    words = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert [(row[0], row[2], row[3]) for row in words] == [
        ("corpus", "2", "1"),
        ("sft", "35", "5"),
        ("collect", "35", "0"),
    ]
    assert shown.count("chats.jsonl line") == 3
    assert f"… and 2 more of sft: {folder}/chats.jsonl cannot be used" in shown.replace("\n", "")
    assert "text.jsonl" in shown


def test_a_file_without_rows_is_named(recipe_path: Path) -> None:
    (recipe_path.parent / "empty.jsonl").write_text("")
    recipe = load_recipe(recipe_path, [f"sft.sources=[{{path: {recipe_path.parent}/empty.jsonl}}]"])
    console = Console(width=400, record=True, file=io.StringIO())
    print_sources(recipe, console)
    assert "empty.jsonl holds no rows" in console.export_text()


def test_a_source_that_takes_too_long_is_counted_in_part() -> None:
    found = count_rows(("" for _ in count()), 0.02)
    assert found.rows > 0
    assert not found.whole
