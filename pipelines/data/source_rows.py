"""Reads the rows of files and functions that hold conversations or prompts, whole or in parts, and names those that
cannot be read."""

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.errors import UserError, first_line
from cluster.recipe.collect import ChatSource
from cluster.recipe.functions import load_function
from cluster.run.atomic import write_text

Row = dict[str, Any]
# A range [start, stop) of the bytes of a file of lines, or of the row groups of a Parquet file.
Span = tuple[int, int]
# Bytes of a part of a file.
SPLIT_BYTES = 8 << 20
_EXCERPT_CHARACTERS = 200
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        place: its file and line.
        reason: a sentence with the place, the complaint and the remedy.
        excerpt: its beginning.
    """

    place: str
    reason: str
    excerpt: str


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


def bad_row(place: str, reason: str, content: Any) -> BadRow:
    """Makes a bad row with an excerpt of its content: a line, or what a row holds."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    # A lone surrogate, which JSON can spell, could not be written down.
    return BadRow(place, reason, text[:_EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode())


def quarantine(bad: Sequence[BadRow], total: int, most: float, file: Path, what: str, key: str) -> None:
    """Writes down the rows that cannot be used, and refuses too many of them.

    Args:
        bad: the rows.
        total: how many rows there are in all.
        most: the largest share of them that may be bad.
        file: where to write; removed if no row is bad.
        what: what the rows are of, for the error.
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


def source_rows(source: ChatSource, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a source, each with its file and line.

    Raises:
        UserError: no file matches, a file is damaged, or the function cannot be loaded or raises.
    """
    if source.kind == "files":
        yield from file_rows(str(source.path))
    else:
        yield from _function_rows(source, seed)


def source_splits(source: ChatSource, size: int = SPLIT_BYTES) -> Iterator[SourceSplit]:
    """Cuts a source into parts of about `size` bytes, in order, whose rows together are those of `source_rows`.

    Files of lines are cut between lines, Parquet files between row groups. A function is one part, and so is a JSON
    list or a packed file.

    Raises:
        UserError: no file matches, or one is damaged.
    """
    if source.kind == "function":
        yield SourceSplit(source)
        return
    for path in matching_files(str(source.path)):
        if path.endswith(".parquet"):
            spans = _row_group_spans(path, size)
        elif path.endswith((".json", ".gz")):
            spans = iter([(None, 0)])
        else:
            spans = _line_spans(path, size)
        yield from (SourceSplit(source, path, span, first) for span, first in spans)


def split_rows(split: SourceSplit, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a part of a source, as `source_rows` does."""
    if split.source.kind == "function":
        yield from _function_rows(split.source, seed)
    else:
        yield from _rows_of(split.path, split.span, split.first)


def _function_rows(source: ChatSource, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    function = load_function(str(source.function), "source")
    try:
        for number, row in enumerate(function(seed=seed, **source.arguments)):
            place = f"{source.function} row {number}"
            if isinstance(row, dict):
                yield row, place
            else:
                yield bad_row(place, f"{place} is a {type(row).__name__}; it must be a dictionary", row), place
    # A user's function may raise anything.
    except Exception as error:
        raise UserError(f"source {source.function} raised {type(error).__name__}: {error}") from error


def read_rows(pattern: str) -> Iterator[tuple[Row, str]]:
    """Yields the rows of `file_rows`, none of which may be bad.

    Raises:
        UserError: no file matches, or a row cannot be read; the message names file and line.
    """
    for row, place in file_rows(pattern):
        yield good_row(row), place


def good_row(row: Row | BadRow) -> Row:
    """Returns a row that could be read.

    Raises:
        UserError: it could not.
    """
    if isinstance(row, BadRow):
        raise UserError(row.reason)
    return row


def file_rows(pattern: str) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of all JSONL, JSON (one list) or Parquet files of a glob, each with its file and line.

    Raises:
        UserError: no file matches, or one is damaged.
    """
    for path in matching_files(pattern):
        yield from _rows_of(path)


def matching_files(pattern: str) -> list[str]:
    """Returns the files of a glob, sorted by name.

    Raises:
        UserError: there are none.
    """
    # A file may be called gl[ob].jsonl.
    paths = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"no file matches {pattern}")
    return paths


def _rows_of(path: str, span: Span | None = None, first: int = 0) -> Iterator[tuple[Row | BadRow, str]]:
    if path.endswith(".parquet"):
        yield from ((row, f"{path} row {number}") for number, row in enumerate(_parquet_rows(path, span), first))
    elif path.endswith(".json"):
        yield from _json_list(path)
    else:
        yield from _json_lines(path, span, max(1, first))


def _row_group_spans(path: str, size: int) -> Iterator[tuple[Span | None, int]]:
    """Yields spans of row groups that have about `size` bytes unpacked, each with the number of its first row."""
    with _parquet_file(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    start, first, held, rows = 0, 0, 0, 0
    for number, group in enumerate(groups):
        if held and held + group.total_byte_size > size:
            yield (start, number), first
            start, first, held = number, rows, 0
        held += group.total_byte_size
        rows += group.num_rows
    yield (start, len(groups)), first


def _line_spans(path: str, size: int) -> Iterator[tuple[Span | None, int]]:
    """Yields spans of about `size` bytes that end where a line does, each with the number of its first line."""
    start, first, lines = 0, 1, 1
    with _opened(path) as file:
        while block := file.read(min(size, _BLOCK_BYTES)):
            lines += block.count(b"\n")
            if file.tell() - start >= size:
                lines += file.readline().endswith(b"\n")
                yield (start, file.tell()), first
                start, first = file.tell(), lines
        if file.tell() > start:
            yield (start, file.tell()), first


@contextmanager
def _parquet_file(path: str) -> Iterator[parquet.ParquetFile]:
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is not a complete Parquet file: {first_line(error)}") from error


def _parquet_rows(path: str, span: Span | None) -> Iterator[Row]:
    with _parquet_file(path) as file:
        for batch in file.iter_batches(row_groups=range(*span) if span else None):
            yield from batch.to_pylist()


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _json_list(path: str) -> Iterator[tuple[Row | BadRow, str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} as JSON: {error}; files with one object per line must end in .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list of objects")
    for number, row in enumerate(rows):
        yield _object(row, f"{path} row {number}"), f"{path} row {number}"


def _json_lines(path: str, span: Span | None, first: int) -> Iterator[tuple[Row | BadRow, str]]:
    with _opened(path) as file:
        left = None
        if span:
            file.seek(span[0])
            left = span[1] - span[0]
        for number, line in enumerate(file, first):
            if left is not None:
                if left <= 0:
                    break
                left -= len(line)
            if line.strip():
                place = f"{path} line {number}"
                yield _json_line(line, place), place


def _json_line(line: bytes, place: str) -> Row | BadRow:
    try:
        return _object(json.loads(line.decode("utf-8-sig")), place)
    except UnicodeDecodeError as error:
        reason = f"{place} is not UTF-8 at byte {error.start}; mend or remove the line"
    except ValueError as error:
        reason = f"{place} is not valid JSON ({error}); mend or remove the line"
    except RecursionError:
        reason = f"{place} is nested too deeply; mend or remove the line"
    return bad_row(place, reason, line.decode("utf-8", "backslashreplace"))


def _object(row: Any, place: str) -> Row | BadRow:
    if isinstance(row, dict):
        return row
    return bad_row(place, f"{place} is not a JSON object; mend or remove it", row)
