"""`triptych init`: writes a first recipe for one's own text, conversations and reward, which passes `--plan`."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.errors import UserError
from cluster.recipe.base import FUNCTION_PATTERN, NAME_PATTERN
from cluster.recipe.collect import ChatSource, Collect
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.stages import check_sources

# The most prompts that a first round asks; the default of `collect.prompts`.
MOST_PROMPTS = Collect.model_fields["prompts"].default
# The share of the prompts that are asked; the report needs others.
ASKED_SHARE = 0.75


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the run; the recipe is NAME.yaml, here")],
    chats: Annotated[
        list[str], typer.Option(help="conversations to fine-tune on: a file, folder or glob; may be repeated")
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="text to pre-train on: a file, folder or glob; may be repeated")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="a model to start from: a folder, a .gguf file, or a name on the Hub")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="prompts to answer; default: those of the conversations")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(metavar="FILE:FUNCTION", help="a reward by code; default: people rank, and a reward model learns"),
    ] = None,
) -> None:
    """Write a first recipe for your own data. It asks nothing, and overwrites no file."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(f"{name!r} is no run's name: letters, digits, dots, dashes and underscores")
    if not text and not start_from:
        raise UserError(
            "--text and --start-from are missing: give text to pre-train on, a model to start from, or both"
        )
    path = Path(f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path} exists: choose another name, or remove it")
    function, folder = reward_function(reward) if reward else ("", None)
    with importable(folder):
        side = path.with_suffix(".yaml.new")
        try:
            asked = prompts or chats
            side.write_text(recipe_text(name, chats, text or [], start_from, asked, function), encoding="utf-8")
            recipe = load_recipe(side)
            check_sources(recipe)
            found = count_prompts(recipe)
            # Imported late: it brings Ray.
            from pipelines.cli.stage_runner import check_without_ray

            check_without_ray(recipe, RunFolder(recipe.folder))
            most = max(2, min(MOST_PROMPTS, int(ASKED_SHARE * found)))
            side.write_text(recipe_text(name, chats, text or [], start_from, asked, function, most), encoding="utf-8")
            load_recipe(side)
            side.rename(path)
        except UserError as error:
            # Its messages name the file that is not kept.
            raise UserError(str(error).replace(str(side), str(path))) from error
        finally:
            side.unlink(missing_ok=True)
    where = f"PYTHONPATH={folder} " if folder and not _finds(function) else ""
    print(f"{path} is written, with {most} of {found} prompts to answer; the others are for the report. Next:")
    print(f"  {where}triptych run {path} --plan     # who gets what of this machine; starts nothing")
    print(f"  {where}triptych run {path} --serve")


def recipe_text(
    name: str,
    chats: list[str],
    text: list[str],
    start_from: str | None,
    prompts: list[str],
    function: str,
    most: int | None = None,
) -> str:
    """Writes the recipe, with a comment on each section.

    Args:
        name: of the run.
        chats: paths of conversations.
        text: paths of text; may be empty with a model to start from.
        start_from: the model to start from, or None.
        prompts: paths of prompts.
        function: module:function of a reward; empty for a reward model.
        most: `collect.prompts`; None for its default.
    """
    sections: list[tuple[str, dict[str, Any]]] = [
        ("`triptych recipe` lists every key and its default.", {"name": name}),
        (
            "A model to start from." if start_from else "A new model; a larger one needs more text.",
            {"model": {"start_from": start_from} if start_from else {"size": "2.5M", "context": 256}},
        ),
    ]
    if text:
        how = "Each file is a document; `text_lines: true` makes each line of text files one."
        sections.append((how, {"corpus": {"sources": _sources(text)}}))
    sections.append(("Conversations to fine-tune on.", {"sft": {"sources": _sources(chats)}}))
    asked = {"sources": _sources(prompts)} | ({"prompts": most} if most else {})
    if function:
        sections.append(("Prompts to train on; those beyond `prompts` are for the report.", {"collect": asked}))
        rewards = {"rewards": [{"kind": "function", "function": function}], "stop": {"max_kl": 5}}
        sections.append(("A reward by code, and a limit that stops the run.", {"rlhf": rewards}))
    else:
        half = {"min_rankings": max(1, most // 2)} if most else {}
        how = "Prompts whose answers people rank on the page /label, and how many rankings to wait for."
        sections.append((how, {"collect": asked | half}))
    parts = (f"# {how}\n{yaml.safe_dump(one, sort_keys=False, allow_unicode=True)}" for how, one in sections)
    return "\n".join(parts)


def reward_function(given: str) -> tuple[str, Path | None]:
    """Splits FILE.py:function, or module:function, into the name for the recipe and the folder of the file.

    Raises:
        UserError: it has another form, or there is no such file.
    """
    place, _, function = given.rpartition(":")
    file = Path(place)
    name = f"{file.stem if file.suffix == '.py' else place}:{function}"
    if not re.fullmatch(FUNCTION_PATTERN, name):
        raise UserError(f"--reward {given}: write FILE.py:FUNCTION, or MODULE:FUNCTION of a module on Python's path")
    if file.suffix == ".py" and not file.is_file():
        raise UserError(f"--reward {given}: there is no file {file}")
    return name, file.absolute().parent if file.suffix == ".py" else None


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Has Python find the modules of a folder."""
    before = list(sys.path)
    if folder:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def count_prompts(recipe: Recipe) -> int:
    """Counts the rows of `collect.sources` that can be used, of so many of each source as are more than enough."""
    # Imported late: they bring the readers of every format.
    from pipelines.data.prompts import prompt_of
    from pipelines.data.source_rows import complaint, source_rows

    enough = int(MOST_PROMPTS / ASKED_SHARE) + 1
    rows = (row for source in recipe.collect.sources for row in islice(source_rows(source, recipe.seed), enough))
    return sum(not complaint(row, place, prompt_of) for row, place in rows)


def _sources(paths: list[str]) -> list[dict[str, Any]]:
    return [ChatSource(path=path).model_dump(include={"path"}) for path in paths]


def _finds(function: str) -> bool:
    return importlib.util.find_spec(function.partition(":")[0]) is not None
