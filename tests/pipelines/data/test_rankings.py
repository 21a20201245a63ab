"""Prompts to rank: their order and split. Tables of rankings: earlier versions."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.recipe.collect import ChatSource
from pipelines.data import rankings
from pipelines.data.chat_formats import PromptText, read_prompts
from tests.demo_recipe import DEMO_PROMPTS

DEMO_SOURCES = [ChatSource(**DEMO_PROMPTS)]


def test_kinds_are_interleaved_so_that_a_rare_one_is_not_lost() -> None:
    many = [PromptText(f"a{i}", [], {"kind": "a"}) for i in range(500)]
    few = [PromptText(f"b{i}", [], {"kind": "b"}) for i in range(20)]
    chosen = rankings.interleave_kinds([*many, *few], 1)[:30]
    assert Counter(prompt.metadata["kind"] for prompt in chosen) == {"a": 15, "b": 15}
    assert len({prompt.id for prompt in chosen}) == 30
    assert rankings.interleave_kinds([*many, *few], 1)[:30] == chosen
    assert rankings.interleave_kinds([*many, *few], 2)[:30] != chosen
    everything = rankings.interleave_kinds([*many, *few], 1)
    assert sorted(prompt.id for prompt in everything) == sorted(prompt.id for prompt in [*many, *few])


def test_demo_prompts_are_balanced_over_kinds() -> None:
    kinds = Counter(
        prompt.metadata["kind"] for prompt in rankings.interleave_kinds(read_prompts(DEMO_SOURCES, 1), 1)[:280]
    )
    assert set(kinds) == {"advice", "capital", "harmful", "harmless", "misconception", "truth", "unknown"}
    assert max(kinds.values()) - min(kinds.values()) <= 1


@pytest.mark.parametrize(("count", "share", "held_out"), [(700, 0.15, 105), (2, 0.01, 1), (3, 0.5, 2), (2, 0.5, 1)])
def test_both_sides_of_the_split_have_prompts(count: int, share: float, held_out: int) -> None:
    names = [str(number) for number in range(count)]
    found = rankings.split_prompts(names, share, 1)
    assert Counter(found.values()) == {"held_out": held_out, "train": count - held_out}
    assert found == rankings.split_prompts(names, share, 1)


def test_tables_of_earlier_versions_are_read_without_their_identical_answers(tmp_path: Path) -> None:
    old = {
        "prompt_id": "p",
        "kind": None,
        "prompt_token_ids": [1],
        "answers": [[5, 2], [6, 2], [5, 2], [7, 7]],
        "texts": ["a", "b", "a", "a"],
        "ranks": [1, 2, 3, 3],
        "grades": [4, 2, 4, 1],
        "annotator": "code (x:y)",
        "split": "train",
        "ranking_id": 1,
    }
    same = old | {"answers": [[5, 2]] * 4, "texts": ["a"] * 4, "split": "held_out"}
    table = pa.Table.from_pylist([old, same], schema=pa.schema(list(rankings.SCHEMA)[:-3]).remove(5))
    assert "samples" not in table.column_names
    parquet.write_table(table, tmp_path / "rankings.parquet")
    (row,) = rankings.read_rankings(tmp_path / "rankings.parquet")
    # A cut answer is another answer to a function, which sees that it was cut. The mean of 1 and 3 ties with 2.
    assert (row["answers"], row["ranks"]) == ([[5, 2], [6, 2], [7, 7]], [1, 1, 2])
    assert (row["grades"], row["samples"]) == ([4, 2, 1], [2, 1, 1])
    assert rankings.merge_identical(row) == row
    assert rankings.read_rankings(tmp_path / "rankings.parquet", "held_out") == []
