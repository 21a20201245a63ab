"""The last phase: all rows of a split, shuffled together, in Parquet shards that training reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.corpus.tasks import written_to_the_side
from pipelines.corpus.tokens.stage import open_rows

ROWS_A_SHARD = 2000
# Small, so that a reader that skips to a row throws little away.
ROWS_A_GROUP = 250

SCHEMA = pa.schema(
    [("row_id", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("document_ids", pa.list_(pa.int32()))]
)


@dataclass(frozen=True)
class Sharding:
    """Writes shard `index`, counted over both splits; rows are looked up where they lie, so memory is one shard.

    Attributes:
        folder: where the shards go, a folder a split below it.
        files: the packed rows of every split, a file a part.
        counts: how many rows each of those files has.
        context: tokens a row.
        seed: of the order of the rows.
    """

    folder: Path
    files: dict[str, tuple[Path, ...]]
    counts: dict[str, tuple[int, ...]]
    context: int
    seed: int

    def shards(self) -> list[tuple[str, int]]:
        """Every shard's split and number within it."""
        return [
            (split, number)
            for split, counts in self.counts.items()
            for number in range(-(-sum(counts) // ROWS_A_SHARD))
        ]

    def path(self, index: int) -> Path:
        split, number = self.shards()[index]
        return self.folder / split / f"shard-{number:05d}.parquet"

    def __call__(self, index: int) -> dict[str, Any]:
        split, number = self.shards()[index]
        start = number * ROWS_A_SHARD
        order = np.random.default_rng(self.seed).permutation(sum(self.counts[split]))
        rows = self._gather(split, order[start : start + ROWS_A_SHARD])
        ids = np.arange(start, start + len(rows), dtype=np.int64)
        columns = [pa.array(ids), _lists(rows[:, 0]), _lists(rows[:, 1])]
        with written_to_the_side(self.path(index)) as side:
            table = pa.Table.from_arrays(columns, schema=SCHEMA)
            pq.write_table(table, side, row_group_size=ROWS_A_GROUP, compression="zstd")
        return {"rows": len(rows)}

    def _gather(self, split: str, wanted: NDArray[np.int64]) -> NDArray[np.int32]:
        ends = np.cumsum(self.counts[split])
        file_of = np.searchsorted(ends, wanted, side="right")
        rows = np.empty((len(wanted), 2, self.context), dtype=np.int32)
        for file in np.unique(file_of):
            here = file_of == file
            first = ends[file] - self.counts[split][file]
            rows[here] = open_rows(self.files[split][file], self.context)[wanted[here] - first]
        return rows


def read_rows(files: Sequence[Path]) -> pa.Table:
    """All rows of some shards in the order of their ids."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(files)])


def _lists(values: NDArray[np.int32]) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).reshape(-1))
