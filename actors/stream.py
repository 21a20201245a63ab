"""The order in which rows are trained on: the same for any number of workers, and from any row on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import ray.data

from cluster.failures import UserError, first_line


@dataclass(frozen=True)
class Shard:
    """A Parquet file of rows and how many it holds."""

    path: str
    rows: int


def shards_in(folder: Path) -> list[Shard]:
    """The shards of a folder, by name.

    Raises:
        UserError: there are none, or one is damaged.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no Parquet shards")
    try:
        shards = [Shard(str(path), parquet.read_metadata(path).num_rows) for path in paths]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"a shard in {folder} is damaged: {first_line(error)}") from error
    return [shard for shard in shards if shard.rows]


def row_stream(shards: list[Shard], epochs: int, seed: int, start: int, deadline: float) -> ray.data.Dataset:
    """Rows of all epochs in training order, from position `start` on, with their position in a column of that name.

    An epoch takes the shards in a random order and the rows of a shard in a random order: reads stay sequential, and
    rows were shuffled over shards when they were packed.

    Args:
        deadline: seconds that the stream may make no progress: tasks that find no free CPU would wait in silence.
    """
    splits = list(_splits(shards, epochs, seed, start))
    rows = ray.data.from_items(splits, override_num_blocks=max(1, len(splits))).map_batches(
        _read, batch_size=1, batch_format="pyarrow", zero_copy_batch=True
    )
    rows.context.execution_options.preserve_order = True
    rows.context.execution_no_progress_timeout_s = deadline
    return rows


def _splits(shards: list[Shard], epochs: int, seed: int, start: int) -> Iterator[dict]:
    position = 0
    for epoch in range(epochs):
        for index in np.random.default_rng([seed, epoch]).permutation(len(shards)):
            shard = shards[index]
            if position + shard.rows > start:
                yield {
                    "path": shard.path,
                    "order": [seed, epoch, int(index)],
                    "position": position,
                    "skip": max(0, start - position),
                }
            position += shard.rows


def _read(splits: pa.Table) -> pa.Table:
    tables = []
    for split in splits.to_pylist():
        table = parquet.read_table(split["path"])
        order = np.random.default_rng(split["order"]).permutation(table.num_rows)[split["skip"] :]
        positions = split["position"] + split["skip"] + np.arange(len(order))
        tables.append(table.take(order).append_column("position", pa.array(positions)))
    return pa.concat_tables(tables)
