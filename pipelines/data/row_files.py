"""Reads the rows of JSONL, JSON, CSV, TSV and Parquet files, whole or in parts, and names those that cannot be read."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.errors import UserError, first_line
from cluster.run.storage.files import no_match
from pipelines.data.encodings import LOOKED_AT, conversion, is_wide

Row = dict[str, Any]
# A range [start, stop) of the bytes of a file of lines, or of the row groups of a Parquet file.
Span = tuple[int, int]
# The suffixes, in any case, of the files that are read, with the delimiters that a table may have; those of `_PACKED`
# may also end with .gz. Spreadsheets write semicolons where a comma is part of numbers.
_LINES, _TABLES = (".jsonl", ".ndjson", ""), {".csv": ",;\t", ".tsv": "\t"}
_PACKED = (*_LINES, *_TABLES)
# Characters of a field of a table, at most. The csv module's own limit is 128 K.
_FIELD_CHARACTERS = 64 << 20
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


def bad_row(place: str, reason: str, content: Any) -> BadRow:
    """Makes a bad row with an excerpt of its content: a line, or the values of a row."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    # A lone surrogate, which JSON can spell, could not be written down.
    return BadRow(place, reason, text[:_EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode())


def good_row(row: Row | BadRow) -> Row:
    """Returns a row that could be read.

    Raises:
        UserError: it could not.
    """
    if isinstance(row, BadRow):
        raise UserError(row.reason)
    return row


def matching_files(pattern: str) -> list[str]:
    """Returns the files of a glob, sorted by name.

    Raises:
        UserError: there are none, or one is a folder or in a format that is not read.
    """
    # A file may be called gl[ob].jsonl.
    paths = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(no_match(pattern))
    for path in paths:
        if Path(path).is_dir():
            raise UserError(f"{path} is a folder: name the files in it, such as {PurePath(path) / '*.jsonl'}")
        _format(path)
    return paths


def _format(path: str) -> tuple[str, bool]:
    """Returns the suffix that tells a file's format, and whether the file is packed.

    Raises:
        UserError: the format is not read.
    """
    name = PurePath(path.lower())
    packed = name.suffix == ".gz"
    suffix = name.with_suffix("").suffix if packed else name.suffix
    if suffix not in (_PACKED if packed else (*_PACKED, ".json", ".parquet")):
        raise UserError(
            f"{path} is in no format that rows are read from: .jsonl, .csv or .tsv, each also as .gz, .json or .parquet"
        )
    return suffix, packed


def spans_of(path: str, size: int) -> Iterator[tuple[Span | None, int]]:
    """Cuts a file into spans of about `size` bytes, each with the number of its first line or row.

    Files of lines are cut between lines, Parquet files between row groups; all others have one span, None.
    """
    suffix, packed = _format(path)
    if suffix == ".parquet":
        yield from _row_group_spans(path, size)
    elif packed or suffix not in _LINES:
        yield None, 0
    else:
        yield from _line_spans(path, size)


def rows_of(path: str, span: Span | None = None, first: int = 0) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a file, or of a span whose first line or row has the number `first`, each with its place.

    Raises:
        UserError: the file is damaged, or in UTF-16 or UTF-32.
    """
    suffix, _ = _format(path)
    if suffix != ".parquet":
        _refuse_wide(path)
    if suffix == ".parquet":
        yield from ((row, f"{path} row {number}") for number, row in enumerate(_parquet_rows(path, span), first))
    elif suffix == ".json":
        yield from _json_list(path)
    elif suffix in _TABLES:
        yield from _table_rows(path, _TABLES[suffix])
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
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _refuse_wide(path: str) -> None:
    with _opened(path) as file:
        start = file.read(LOOKED_AT)
    if is_wide(start):
        raise UserError(f"{path} is not UTF-8; {conversion(start)}")


def _json_list(path: str) -> Iterator[tuple[Row | BadRow, str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = json.load(file)
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path} is not UTF-8 at byte {error.start}; {conversion(error.object)}") from error
        raise UserError(
            f"cannot read {path} as JSON: {error}; files with one object per line must end in .jsonl"
        ) from error
    if not isinstance(rows, list):
        held = f"one object with the fields {', '.join(list(rows)[:8])}" if isinstance(rows, dict) else repr(rows)[:40]
        raise UserError(f"{path} is not a list of objects but {held}: write the rows as [{{...}}, {{...}}]")
    for number, row in enumerate(rows):
        yield _object(row, f"{path} row {number}"), f"{path} row {number}"


def _table_rows(path: str, delimiters: str) -> Iterator[tuple[Row | BadRow, str]]:
    """Yields the rows of a CSV or TSV file by its first row's names, each with the line on which it ends."""
    csv.field_size_limit(_FIELD_CHARACTERS)
    with _opened(path) as file:
        # A byte that is no UTF-8 makes its own row a bad one, and no other.
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        first = lines.readline()
        delimiter = max(delimiters, key=first.count)
        table = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        names: list[str] = []
        while True:
            before = table.line_num
            try:
                fields = next(table, None)
            except csv.Error as error:
                if "unexpected end" in str(error):
                    # The rest of the file is within the mark: how many rows it has, nobody can tell.
                    where = f"{path} line {before + 1}"
                    raise UserError(f"{where}: a quotation mark of this row is never closed; fix the row") from error
                place = f"{path} line {table.line_num}"
                yield bad_row(place, f"{place} is not valid CSV ({error}); fix the row", ""), place
                continue
            if fields is None:
                return
            place = f"{path} line {table.line_num}"
            if not names:
                names = _column_names(fields, path)
            elif fields:
                yield _table_row(names, fields, place), place


def _column_names(fields: list[str], path: str) -> list[str]:
    if len(set(fields)) < len(fields):
        raise UserError(f"{path}: the first line must name the columns, each differently, such as prompt,response")
    return [name.strip() for name in fields]


def _table_row(names: list[str], fields: list[str], place: str) -> Row | BadRow:
    if len(fields) != len(names):
        reason = f"{place} has {len(fields):,} fields and the first line {len(names):,}; put texts in quotation marks"
        return bad_row(place, reason, fields)
    if any("\udc80" <= character <= "\udcff" for field in fields for character in field if character > "\x7f"):
        return bad_row(place, f"{place} is not UTF-8; fix the row, or all of the file: {conversion(b'')}", fields)
    return dict(zip(names, fields, strict=True))


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
        advice = f"fix the line, or all of the file: {conversion(b'')}"
        reason = f"{place} is not UTF-8 at byte {error.start}; {advice}"
    except ValueError as error:
        reason = f"{place} is not valid JSON ({error}); write one whole object on each line, or remove the line"
    except RecursionError:
        reason = f"{place} is nested too deeply; fix or remove the line"
    return bad_row(place, reason, line.decode("utf-8", "backslashreplace"))


def _object(row: Any, place: str) -> Row | BadRow:
    if isinstance(row, dict):
        return row
    return bad_row(place, f"{place} is not a JSON object; fix or remove it", row)
