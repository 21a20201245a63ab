"""Defines the files that the phases hand on: prepared part files, and arrays with one entry per row of them.

A later phase never rewrites a part file: what it decides about the rows goes to an array beside it, so that texts are
written once however many phases follow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.run.atomic import atomic_write
from pipelines.corpus.heartbeat import progress

# Documents that a task processes at once, and rows of a row group.
BATCH = 500
# Arrow joins row groups to batches: 500 documents of 1 MB would take a gigabyte.
_BATCH_BYTES = 64 << 20

PREPARED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("bytes", pa.int64()),  # of the text in UTF-8
        ("digest", pa.binary(16)),  # xxh3-128 of those bytes
        ("quality", pa.float32()),  # share of lines that end with punctuation; null unless deduplication needs it
    ]
)
# Documents that rules drop, with corpus.keep_excluded.
EXCLUDED = pa.schema([(name, pa.string()) for name in ("id", "source", "reason", "text")])


class Part(NamedTuple):
    """A prepared part file, with the documents of one input split.

    Attributes:
        file: Parquet, `PREPARED`.
        fingerprint: xxh3-128 of the file's bytes.
        source: name of the documents' source.
        drop_near_duplicates: whether near-duplicates among its documents are dropped, or exact copies only.
    """

    file: Path
    fingerprint: str
    source: str
    drop_near_duplicates: bool = True


def selected_rows(file: Path, selected: NDArray[np.bool_], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Reads the selected rows of a part file in order, `BATCH` or 64 MB at a time or fewer; no batch is empty.

    Args:
        selected: (rows of the file,).
    """
    start = 0
    with pq.ParquetFile(file) as part:
        for batch in part.iter_batches(rows_at_once(part), columns=list(columns)):
            rows = batch.filter(pa.array(selected[start : start + batch.num_rows]))
            start += batch.num_rows
            progress()
            if rows.num_rows:
                yield rows


def rows_at_once(part: pq.ParquetFile) -> int:
    """Returns how many rows of a part file to read at once: `BATCH`, or fewer if they are large."""
    groups = [part.metadata.row_group(group) for group in range(part.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0.0)
    return max(1, min(BATCH, int(_BATCH_BYTES / max(largest, 1.0))))


def fixed_width(column: pa.ChunkedArray, dtype: np.dtype) -> NDArray:
    """Views the bytes of a fixed-size binary column without nulls as numbers."""
    values = column.combine_chunks()
    data = values.chunk(0) if isinstance(values, pa.ChunkedArray) and values.num_chunks else values
    if not len(data):
        return np.empty(0, dtype=dtype)
    width = data.type.byte_width
    return np.frombuffer(data.buffers()[1], dtype=np.uint8)[data.offset * width :][: len(data) * width].view(dtype)


def map_array(file: Path) -> NDArray:
    """Maps the array of a .npy file into memory, so that only what is accessed is read."""
    # An empty array cannot be mapped, and a small one need not be.
    array: NDArray = np.load(file, mmap_mode="r" if file.stat().st_size > 4096 else None)
    return array


def save_array(path: Path, array: NDArray[Any]) -> Path:
    """Writes a .npy file atomically; returns its path."""
    with atomic_write(path) as side, side.open("wb") as file:
        np.save(file, array)
    return path
