"""Last phase: shuffles all rows of a split and writes them to the Parquet shards that training reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.progress import Progress

from actors.trainer.data import LARGE_SHARD_TOKENS, PARTS
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import fingerprint
from pipelines.corpus import heartbeat
from pipelines.corpus.dedup.split import SPLITS
from pipelines.corpus.tasks import Phase, Report, Task, run_tasks
from pipelines.corpus.tokens.order import Order, order
from pipelines.corpus.tokens.stage import TokenizePhase, map_rows

SHARD_ROWS = 2000
# Small, so that a reader that seeks a row discards little. A large shard has PARTS row groups, for as many workers.
ROW_GROUP_ROWS = 250


def write_shards(
    recipe: Recipe, tokenized: TokenizePhase, reports: Sequence[Report], out: Path, progress: Progress
) -> None:
    """Runs the phase over all shards of both splits.

    Args:
        tokenized: the phase that wrote the rows.
        reports: the reports of its tasks, in order.

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
    key = fingerprint([[report["fingerprints"] for report in reports], recipe.seed])
    tasks = [Task(f"{split}-{number:05d}", key, (phase.path(split, number),)) for split, number in phase.shards()]
    done, deadline = out / "work" / "done" / "shards", recipe.cluster.deadline_seconds
    run_tasks("shuffle and shard", done, tasks, phase, progress, deadline)


@dataclass(frozen=True)
class ShardPhase(Phase):
    """Writes shard `index`, counted over both splits. Rows are read in place, so a task holds one shard in memory.

    Attributes:
        folder: gets a folder of shards per split.
        files: packed rows by split, a file per part.
        counts: rows of each of those files.
        context: tokens of a row.
        seed: the seed of the order of the rows.
    """

    folder: Path
    files: dict[str, tuple[Path, ...]]
    counts: dict[str, tuple[int, ...]]
    context: int
    seed: int

    def shards(self) -> list[tuple[str, int]]:
        """Lists every shard by its split and its number within the split."""
        return [
            (split, number) for split, ends in self._ends.items() for number in range(-(-int(ends[-1]) // SHARD_ROWS))
        ]

    def path(self, split: str, number: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / split / f"shard-{number:05d}.parquet"

    def only(self, index: int) -> "WriteShard":
        split, number = self._shards[index]
        ends, start = self._ends[split], number * SHARD_ROWS
        rows = int(ends[-1])
        wanted = self._order[split].at(np.arange(start, min(start + SHARD_ROWS, rows), dtype=np.int64))
        places = np.searchsorted(ends, wanted, side="right")
        needed, file_of = np.unique(places, return_inverse=True)
        first = ends[places] - np.array(self.counts[split], dtype=np.int64)[places]
        files = tuple(self.files[split][place] for place in needed.tolist())
        return WriteShard(self.path(split, number), start, files, file_of, wanted - first, self.context)

    def __call__(self, index: int) -> Report:
        return self.only(index)(0)

    @cached_property
    def _shards(self) -> list[tuple[str, int]]:
        return self.shards()

    @cached_property
    def _ends(self) -> dict[str, NDArray[np.int64]]:
        """Number of the first row after each file, by split."""
        return {split: np.cumsum([0, *counts], dtype=np.int64)[1:] for split, counts in self.counts.items()}

    @cached_property
    def _order(self) -> dict[str, Order]:
        return {split: order(int(ends[-1]), self.seed) for split, ends in self._ends.items()}


@dataclass(frozen=True)
class WriteShard:
    """Writes one shard.

    Attributes:
        path: the path of the shard.
        start: id of its first row.
        files: packed rows of the parts that have rows in it.
        file_of: file of each row, (rows,).
        rows: number of each row in its file, (rows,).
        context: tokens of a row.
    """

    path: Path
    start: int
    files: tuple[Path, ...]
    file_of: NDArray[np.int64]
    rows: NDArray[np.int64]
    context: int

    def __call__(self, _: int) -> Report:
        found = np.empty((len(self.rows), 2, self.context), dtype=np.int32)
        for number, file in enumerate(self.files):
            here = self.file_of == number
            found[here] = map_rows(file, self.context)[self.rows[here]]
            heartbeat.progress()
        ids = np.arange(self.start, self.start + len(found), dtype=np.int64)
        write_shard(self.path, {"row_id": ids, "input_ids": found[:, 0], "document_ids": found[:, 1]})
        return {"rows": len(found)}


def write_shard(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes rows that training reads: a column per array, [rows] or [rows, context]."""
    lists = {name: pa.array(value) if value.ndim == 1 else _lists(value) for name, value in columns.items()}
    write_table(path, pa.table(lists))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a shard atomically."""
    with atomic_write(path) as side:
        pq.write_table(table, side, row_group_size=_row_group_rows(table), compression="zstd")


def _row_group_rows(table: pa.Table) -> int:
    """Returns the rows of a row group of a shard whose rows are of one length."""
    tokens = table.num_rows and table.num_rows * len(table["input_ids"][0])
    return table.num_rows // PARTS if tokens >= LARGE_SHARD_TOKENS else ROW_GROUP_ROWS


def read_rows(files: Sequence[Path]) -> pa.Table:
    """Reads all rows of some shards in the order of their ids."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(files)])


def _lists(values: NDArray[Any]) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).reshape(-1))
