"""Stores the records of a large file in pieces: the text of each, or the reason that it has none, with its place."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run.atomic import atomic_write
from pipelines.corpus.read.records import BadRecord, Item, Skipped

# Texts as bytes, since half of a surrogate pair, which is refused later, is no UTF-8; results without a text as JSON.
_SCHEMA = pa.schema([("place", pa.int64()), ("text", pa.binary()), ("bad", pa.string()), ("skipped", pa.string())])
_ROWS = 500
_KEY = b"triptych"


class Piece(NamedTuple):
    """The description that a piece holds of itself.

    Attributes:
        key: fingerprint of what the pieces of its file depend on.
        end: records of the file up to the end of the piece.
        size: bytes of its records.
        last: whether the file ends with it.
    """

    key: str
    end: int
    size: int
    last: bool


def write_piece(path: Path, items: Iterator[tuple[int, Item]], before: Piece, most: int) -> Piece:
    """Writes records until they have `most` bytes or end; the file appears when all are written.

    Args:
        before: the piece before, or one that ends at record 0.
    """
    end, size, last = before.end, 0, False
    with atomic_write(path) as side, pq.ParquetWriter(side, _SCHEMA, compression="zstd") as writer:
        rows: list[tuple[int, bytes | None, str | None, str | None]] = []
        while size < most and not last:
            found = next(items, None)
            if found is None:
                last = True
            else:
                rows.append(_row(*found))
                size += len(rows[-1][1] or b"")
                end += 1
            if rows and (last or size >= most or len(rows) == _ROWS):
                writer.write_table(_table(rows))
                rows = []
        piece = Piece(before.key, end, size, last)
        writer.add_key_value_metadata({_KEY: json.dumps(piece)})
    return piece


def read_piece(path: Path) -> Iterator[tuple[int, Item]]:
    """Reads the records of a piece, as they were when they were written."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            for place, text, bad, skipped in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if bad is not None:
                    yield place, BadRecord(**json.loads(bad))
                elif skipped is not None:
                    yield place, Skipped(**json.loads(skipped))
                else:
                    yield place, text.decode("utf-8", "surrogatepass")


def describe_piece(path: Path) -> Piece | None:
    """Reads the description of a piece; None if there is no such file."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except FileNotFoundError:
        return None
    return Piece(*json.loads(metadata[_KEY]))


def _row(place: int, item: Item) -> tuple[int, bytes | None, str | None, str | None]:
    if isinstance(item, BadRecord):
        return place, None, json.dumps(asdict(item)), None
    if isinstance(item, Skipped):
        return place, None, None, json.dumps(asdict(item))
    return place, item.encode("utf-8", "surrogatepass"), None, None


def _table(rows: list[tuple[int, bytes | None, str | None, str | None]]) -> pa.Table:
    columns = zip(zip(*rows, strict=True), _SCHEMA, strict=True)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in columns], schema=_SCHEMA)
