"""Reads documents from Parquet files, and goes on behind values and row groups that are damaged."""

from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from cluster.errors import UserError, first_line
from cluster.run.storage.files import file_info
from cluster.run.storage.remote import RemoteFile, is_remote
from pipelines.corpus.read.fields import FieldError, text_of
from pipelines.corpus.read.lines import Span
from pipelines.corpus.read.records import BadRecord, DamageError, Item, unread

# The most rows, and about the most bytes, read at once.
_ROWS, _BYTES = 1000, 64 << 20
# Arrow reports damage as one of these, an OSError without a number, or, in lengths and offsets, as a MemoryError.
_DAMAGE = (pyarrow.ArrowException, ValueError, OSError, MemoryError)


def row_groups(name: str, size: int) -> list[Span]:
    """Cuts a Parquet file into spans of row groups of about `size` bytes uncompressed; none if it is damaged.

    Raises:
        StorageError: the file's storage does not answer.
    """
    try:
        with _open(name) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    except _DAMAGE:
        # Reading it will report the error.
        return []
    found, start, held = [], 0, 0
    for group, group_size in enumerate(sizes):
        if held and held + group_size > size:
            found.append((start, group))
            start, held = group, 0
        held += group_size
    return [*found, (start, len(sizes))]


def read_rows(name: str, text_field: str, encoding: str, span: Span | None) -> Iterator[tuple[int, Item]]:
    """Reads the text of every row of the row groups of a span, with its number.

    Raises:
        StorageError: the file's storage does not answer.
        UserError: the file has no such column.
    """
    size = file_info(name).size
    try:
        file = _open(name)
    except _DAMAGE as error:
        _raise_if_numbered(error)
        damage = DamageError(f"Parquet, {first_line(error)}", 0)
        yield 0, unread(name, 0, "from its start", damage, size, None)
        return
    with file:
        column = _column(name, text_field, file.schema_arrow)
        first, stop = span or (0, file.num_row_groups)
        number = sum(file.metadata.row_group(group).num_rows for group in range(first))
        for group in range(first, stop):
            yield from _read_group(name, file, group, number, (text_field, column, encoding), size)
            number += file.metadata.row_group(group).num_rows


def _read_group(
    name: str, file: pyarrow.parquet.ParquetFile, group: int, number: int, field: tuple[str, str, str], size: int
) -> Iterator[tuple[int, Item]]:
    text_field, column, encoding = field
    place, end = number, number + file.metadata.row_group(group).num_rows
    try:
        for batch in file.iter_batches(_rows_at_once(file, group), row_groups=[group], columns=[column]):
            for row in _rows(batch):
                yield place, _text(name, row, place, text_field, encoding)
                place += 1
    except _DAMAGE as error:
        _raise_if_numbered(error)
        held = file.metadata.row_group(group)
        stored = sum(held.column(index).total_compressed_size for index in range(held.num_columns))
        skipped = max(1, round(stored * (end - place) / max(end - number, 1)))
        damage = DamageError(f"Parquet, {first_line(error)}", 0)
        yield place, unread(name, place, f"in rows {place + 1:,} to {end:,}", damage, size, skipped)


def _rows_at_once(file: pyarrow.parquet.ParquetFile, group: int) -> int:
    held = file.metadata.row_group(group)
    return max(1, min(_ROWS, _BYTES * held.num_rows // max(held.total_byte_size, 1)))


def _rows(batch: pyarrow.RecordBatch) -> Iterator[Any]:
    """Yields the rows of a batch; a value that is no UTF-8 as bytes, since Arrow converts all of a batch or none."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            row = batch.slice(place, 1)
            try:
                yield from row.to_pylist()
            except UnicodeDecodeError:
                yield {column: _bytes(row.column(column)) for column in row.schema.names}


def _bytes(column: pyarrow.Array) -> Any:
    kind = pyarrow.large_binary() if pyarrow.types.is_large_string(column.type) else pyarrow.binary()
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return b"\xff"  # of a nested value only the complaint is left
    return column.view(kind)[0].as_py()


def _text(name: str, row: Any, place: int, text_field: str, encoding: str) -> str | BadRecord:
    try:
        return text_of(row, text_field, encoding)
    except FieldError as error:
        return BadRecord(name, place + 1, f"{name} row {place + 1}{error}")


def _column(name: str, text_field: str, schema: pyarrow.Schema) -> str:
    """Finds the column of a field: the one of that name, or that of the path's first name."""
    names = schema.names
    first = text_field.partition(".")[0]
    if text_field not in names and first not in names:
        raise UserError(f"{name} has no column {text_field!r}, only {', '.join(names)}; set text_field of this source")
    return text_field if text_field in names else first


def _open(name: str) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(RemoteFile(name) if is_remote(name) else name)


def _raise_if_numbered(error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        raise error
