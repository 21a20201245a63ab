"""Last phase: shuffles all rows of a split and writes them to the Parquet shards that training reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.progress import Progress

from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import fingerprint
from pipelines.corpus.dedup.split import SPLITS
from pipelines.corpus.tasks import Report, Task, run_tasks
from pipelines.corpus.tokens.stage import TokenizePhase, map_rows

SHARD_ROWS = 2000
# Small, so that a reader that seeks a row discards little.
ROW_GROUP_ROWS = 250


def write_shards(
    recipe: Recipe, tokenized: TokenizePhase, reports: Sequence[Report], out: Path, progress: Progress
) -> None:
    """Runs the phase over all shards of both splits.

    Args:
        tokenized: the phase that wrote the rows.
        reports: of its tasks, in order.

    Raises:
        DeadlineError: no shard finished within the recipe's deadline.
    """
    every = range(len(reports))
    phase = ShardPhase(
        folder=out / "shards",
        files={name: tuple(tokenized.rows_file(index, name) for index in every) for name in SPLITS},
        counts={name: tuple(report[name]["rows"] for report in reports) for name in SPLITS},
        context=recipe.model.context,
        seed=recipe.seed,
    )
    rows = [report["fingerprints"] for report in reports]
    tasks = [
        Task(f"{split}-{number:05d}", fingerprint([rows, recipe.seed]), (phase.path(index),))
        for index, (split, number) in enumerate(phase.shards())
    ]
    done, deadline = out / "work" / "done" / "shards", recipe.cluster.deadline_seconds
    run_tasks("shuffle and shard", done, tasks, phase, progress, deadline)


@dataclass(frozen=True)
class ShardPhase:
    """Writes shard `index`, counted over both splits. Rows are read in place, so a task holds one shard in memory.

    Attributes:
        folder: gets a folder of shards per split.
        files: packed rows by split, a file per part.
        counts: rows of each of those files.
        context: tokens of a row.
        seed: of the order of the rows.
    """

    folder: Path
    files: dict[str, tuple[Path, ...]]
    counts: dict[str, tuple[int, ...]]
    context: int
    seed: int

    def shards(self) -> list[tuple[str, int]]:
        """Lists every shard by its split and its number within the split."""
        return [
            (split, number) for split, counts in self.counts.items() for number in range(-(-sum(counts) // SHARD_ROWS))
        ]

    def path(self, index: int) -> Path:
        split, number = self.shards()[index]
        return self.folder / split / f"shard-{number:05d}.parquet"

    def __call__(self, index: int) -> Report:
        split, number = self.shards()[index]
        start = number * SHARD_ROWS
        order = np.random.default_rng(self.seed).permutation(sum(self.counts[split]))
        rows = self._gather(split, order[start : start + SHARD_ROWS])
        ids = np.arange(start, start + len(rows), dtype=np.int64)
        write_shard(self.path(index), {"row_id": ids, "input_ids": rows[:, 0], "document_ids": rows[:, 1]})
        return {"rows": len(rows)}

    def _gather(self, split: str, wanted: NDArray[np.int64]) -> NDArray[np.int32]:
        ends = np.cumsum(self.counts[split])
        file_of = np.searchsorted(ends, wanted, side="right")
        rows = np.empty((len(wanted), 2, self.context), dtype=np.int32)
        for file in np.unique(file_of):
            here = file_of == file
            first = ends[file] - self.counts[split][file]
            rows[here] = map_rows(self.files[split][file], self.context)[wanted[here] - first]
        return rows


def write_shard(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes rows that training reads: a column per array, [rows] or [rows, context]."""
    lists = {name: pa.array(value) if value.ndim == 1 else _lists(value) for name, value in columns.items()}
    write_table(path, pa.table(lists))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a shard atomically."""
    with atomic_write(path) as side:
        pq.write_table(table, side, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def read_rows(files: Sequence[Path]) -> pa.Table:
    """Reads all rows of some shards in the order of their ids."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(files)])


def _lists(values: NDArray[Any]) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).reshape(-1))
