"""Reads the rows of sources that hold conversations or prompts, whole or in parts, and sets those aside that cannot be
used."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from cluster.recipe.functions import SOURCE_SECONDS, failure_reason, items_within, load_function
from cluster.run.atomic import write_text
from pipelines.data.row_files import BadRow, Row, Span, bad_row, good_row, matching_files, rows_of, spans_of

# Reads a row, given its file and line, or raises a UserError: `prompt_of` or `conversation_of`.
Read = Callable[[Row, str], object]
# Bytes of a part of a file.
SPLIT_BYTES = 8 << 20
# Rows of a file of which one must be readable before a run starts.
_CHECKED_ROWS = 20


@dataclass(frozen=True)
class SourceSplit:
    """A part of a source that is read by itself.

    Attributes:
        source: the recipe's.
        path: the file; empty for a function.
        span: a part of that file; None for all of it.
        first: the number of the first line or row of the span.
    """

    source: ChatSource
    path: str = ""
    span: Span | None = None
    first: int = 0


def quarantine(bad: Sequence[BadRow], total: int, most: float, file: Path, what: str, key: str) -> None:
    """Writes down the rows that cannot be used, and refuses too many of them.

    Args:
        bad: the rows.
        total: how many rows there are in all.
        most: the largest share of them that may be bad.
        file: the file to write; removed if no row is bad.
        what: a name for the rows, for the error.
        key: the setting that `most` comes from, for the error.

    Raises:
        UserError: more are bad.
    """
    write_bad_rows(bad, file)
    require_few_bad_rows(len(bad), bad[0].reason if bad else "", total, most, file, what, key)


def write_bad_rows(bad: Sequence[BadRow], file: Path) -> None:
    """Writes rows to a file, one JSON object a line; removes it if there are none."""
    file.unlink(missing_ok=True)
    if bad:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad))


def require_few_bad_rows(bad: int, first: str, total: int, most: float, file: Path, what: str, key: str) -> None:
    """Refuses a share of bad rows above `most`; `first` is the reason of the first, the others as in `quarantine`.

    Raises:
        UserError: more are bad.
    """
    if bad > most * total:
        raise UserError(
            f"{first} ({bad:,} of {total:,} rows in {what} cannot be used, and {key} lets {most:g} of them be left "
            f"out; {file} has them all)"
        )


def check_first_rows(sources: Iterable[ChatSource], read: Read) -> None:
    """Checks that a row near the beginning of every file of the sources can be read, before anything is done.

    Lists of JSON of more than `SPLIT_BYTES`, which can only be read whole, are passed over.

    Args:
        sources: the recipe's; functions are passed over.
        read: reads a row, given its file and line; `prompt_of` or `conversation_of`.

    Raises:
        UserError: a file is missing, damaged or in no format that is read, or none of its first rows can be read.
    """
    for source in sources:
        for path in matching_files(str(source.path)) if source.kind == "files" else []:
            if path.lower().endswith(".json") and Path(path).stat().st_size > SPLIT_BYTES:
                continue
            complaints = [complaint(row, place, read) for row, place in islice(rows_of(path), _CHECKED_ROWS)]
            if complaints and all(complaints):
                raise UserError(complaints[0])


def complaint(row: Row | BadRow, place: str, read: Read) -> str:
    """Says why a row cannot be read; empty if it can."""
    if isinstance(row, BadRow):
        return row.reason
    try:
        read(row, place)
    except UserError as error:
        return str(error)
    return ""


def source_rows(source: ChatSource, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a source, each with its file and line; none of live traffic, which lies in the database.

    Raises:
        UserError: no file matches, a file is damaged, or the function cannot be loaded or raises.
    """
    if source.kind == "files":
        yield from file_rows(str(source.path))
    elif source.kind == "function":
        yield from _function_rows(source, seed)


def source_splits(source: ChatSource, size: int = SPLIT_BYTES) -> Iterator[SourceSplit]:
    """Cuts a source into parts of about `size` bytes, in order, whose rows together are those of `source_rows`.

    Files of lines are cut between lines, Parquet files between row groups. A function is one part, and so is a JSON
    list, a table or a packed file.

    Raises:
        UserError: no file matches, or one is damaged.
    """
    if source.kind == "function":
        yield SourceSplit(source)
        return
    for path in matching_files(str(source.path)):
        yield from (SourceSplit(source, path, span, first) for span, first in spans_of(path, size))


def split_rows(split: SourceSplit, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a part of a source, as `source_rows` does."""
    if split.source.kind == "function":
        yield from _function_rows(split.source, seed)
    else:
        yield from rows_of(split.path, split.span, split.first)


def _function_rows(source: ChatSource, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    function = load_function(str(source.function), "source")
    try:
        rows = items_within(SOURCE_SECONDS, partial(function, seed=seed, **source.arguments))
        for number, row in enumerate(rows):
            place = f"{source.function} row {number}"
            if isinstance(row, dict):
                yield row, place
            else:
                yield bad_row(place, f"{place} is a {type(row).__name__}; it must be a dictionary", row), place
    # A user's function may raise anything.
    except Exception as error:
        raise UserError(f"source {source.function} {failure_reason(error)}") from error


def read_rows(pattern: str) -> Iterator[tuple[Row, str]]:
    """Yields the rows of `file_rows`, none of which may be bad.

    Raises:
        UserError: no file matches, or a row cannot be read; the message names file and line.
    """
    for row, place in file_rows(pattern):
        yield good_row(row), place


def file_rows(pattern: str) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of all JSONL, JSON (one list), CSV, TSV or Parquet files of a glob, each with its file and line.

    Raises:
        UserError: no file matches, or one is damaged or in another format.
    """
    for path in matching_files(pattern):
        yield from rows_of(path)
