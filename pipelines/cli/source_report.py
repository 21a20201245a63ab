"""`triptych run --plan`: how many rows the files of a recipe's sources hold, and those that cannot be used."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from rich.console import Console
from rich.table import Table

from cluster.recipe.collect import ChatSource
from cluster.recipe.corpus import Source
from cluster.recipe.recipe import Recipe
from pipelines.corpus.read.records import BadRecord, Skipped
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.data.chat_formats import conversation_of
from pipelines.data.prompts import prompt_of
from pipelines.data.source_rows import Read, complaint, source_rows

# The most seconds to read each source; larger ones are counted in part.
SECONDS = 60.0
SHOWN_BAD = 3


@dataclass
class SourceCount:
    """The rows of a source.

    Attributes:
        rows: the number of rows read.
        bad: the number of those that cannot be used.
        reasons: why the first few cannot.
        whole: whether all rows were read in time.
    """

    rows: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list)
    whole: bool = True


def print_sources(recipe: Recipe, console: Console, seconds: float = SECONDS) -> None:
    """Reads all files of the recipe's text, conversations and prompts, and prints a line on each source.

    Functions are not called: what they do may take long.

    Args:
        recipe: the recipe.
        console: the console to print on.
        seconds: the most for one source.

    Raises:
        UserError: a file is missing, damaged, or in no format that is read.
    """
    table, reasons = Table("section", "source", "rows", "unusable", title="rows of the sources"), list[str]()
    counted: list[tuple[str, str, Iterator[str]]] = [
        *(("corpus", str(one.path), _texts(one)) for one in recipe.corpus.sources if one.kind == "files"),
        *(("sft", str(one.path), _rows(one, conversation_of)) for one in recipe.sft.sources if one.kind == "files"),
        *(("collect", str(one.path), _rows(one, prompt_of)) for one in recipe.collect.sources if one.kind == "files"),
        *(("rlhf", str(one.path), _rows(one, prompt_of)) for one in recipe.rlhf.sources if one.kind == "files"),
    ]
    for section, name, rows in counted:
        found = count_rows(rows, seconds)
        more = "" if found.whole else f" in the first {seconds:.0f} s"
        table.add_row(section, name, f"{found.rows:,}{more}", f"{found.bad:,}")
        reasons += found.reasons or [f"{section}: {name} holds no rows"] * (found.rows == 0)
        if found.bad > SHOWN_BAD:
            reasons.append(f"… and {found.bad - SHOWN_BAD:,} more of {section}: {name} cannot be used")
    if counted:
        console.print(table)
    sources: list[Source | ChatSource] = [
        *recipe.corpus.sources,
        *recipe.sft.sources,
        *recipe.collect.sources,
        *recipe.rlhf.sources,
    ]
    if functions := list(dict.fromkeys(str(one.function) for one in sources if one.kind == "function")):
        console.print(f"rows of functions are not counted: {', '.join(functions)}", soft_wrap=True, highlight=False)
    for reason in reasons:
        console.print(reason, soft_wrap=True, markup=False, highlight=False)


def count_rows(rows: Iterable[str], seconds: float) -> SourceCount:
    """Counts rows, each of which is given as the reason why it cannot be used, empty if it can."""
    found, end = SourceCount(), time.monotonic() + seconds
    for reason in rows:
        found.rows += 1
        if reason:
            found.bad += 1
            found.reasons += [reason] * (found.bad <= SHOWN_BAD)
        if time.monotonic() > end:
            found.whole = False
            break
    return found


def _rows(source: ChatSource, read: Read) -> Iterator[str]:
    return (complaint(row, place, read) for row, place in source_rows(source, seed=0))


def _texts(source: Source) -> Iterator[str]:
    items = chain.from_iterable(map(read_split, plan_splits([source], seed=0)))
    return (item.reason if isinstance(item, BadRecord) else "" for item in items if not isinstance(item, Skipped))
