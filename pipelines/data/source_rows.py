"""Reads the rows of files and functions that hold conversations or prompts, and names those that cannot be read."""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.errors import UserError, first_line
from cluster.recipe.collect import ChatSource
from cluster.recipe.functions import load_function
from cluster.run.atomic import write_text

Row = dict[str, Any]
_EXCERPT_CHARACTERS = 200


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


def bad_row(place: str, reason: str, content: Any) -> BadRow:
    """Makes a bad row with an excerpt of its content: a line, or what a row holds."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    # A lone surrogate, which JSON can spell, could not be written down.
    return BadRow(place, reason, text[:_EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode())


def quarantine(bad: Sequence[BadRow], total: int, most: float, file: Path, what: str, key: str) -> None:
    """Writes down the rows that cannot be used, one JSON object a line.

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
    file.unlink(missing_ok=True)
    if bad:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad))
    if len(bad) > most * total:
        raise UserError(
            f"{bad[0].reason} ({len(bad):,} of {total:,} rows in {what} cannot be used, and {key} lets {most:g} of "
            f"them be left out; {file} has them all)"
        )


def source_rows(source: ChatSource, seed: int) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a source, each with its file and line.

    Raises:
        UserError: no file matches, a file is damaged, or the function cannot be loaded or raises.
    """
    if source.kind == "files":
        yield from file_rows(str(source.path))
        return
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
    # A file may be called gl[ob].jsonl.
    paths = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"no file matches {pattern}")
    for path in paths:
        if path.endswith(".parquet"):
            yield from ((row, f"{path} row {number}") for number, row in enumerate(_parquet_rows(path)))
        elif path.endswith(".json"):
            yield from _json_list(path)
        else:
            yield from _json_lines(path)


def _parquet_rows(path: str) -> Iterator[Row]:
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is not a complete Parquet file: {first_line(error)}") from error


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


def _json_lines(path: str) -> Iterator[tuple[Row | BadRow, str]]:
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{path} line {number}"
                    yield _json_line(line, place), place
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


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
