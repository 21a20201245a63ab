"""Batches of rows in training order, which is the same for any number of workers and can be entered at any row."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from actors.types import OwnRows
from cluster.errors import UserError, first_line

# Row groups that a large shard has, of which each of several workers reads its own, and tokens that make a shard large.
PARTS, LARGE_SHARD_TOKENS = 64, 2 << 20


@dataclass(frozen=True)
class Shard:
    """A Parquet file.

    Attributes:
        path: of the file.
        rows: in it.
        group_rows: rows of each row group but the last; 0 where that is unknown.
    """

    path: str
    rows: int
    group_rows: int = 0

    @property
    def part_rows(self) -> int:
        """The rows of one of PARTS equal parts, each a row group; 0 where the shard has fewer row groups."""
        return self.group_rows if self.group_rows and self.rows // self.group_rows >= PARTS else 0


def shards_in(folder: Path) -> list[Shard]:
    """Returns the shards of a folder that hold rows, sorted by name.

    Raises:
        UserError: there are none, or one is damaged.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no Parquet shards")
    try:
        shards = [_shard(path) for path in paths]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"a shard in {folder} is damaged: {first_line(error)}") from error
    return [shard for shard in shards if shard.rows]


def _shard(path: Path) -> Shard:
    metadata = parquet.read_metadata(path)
    groups = metadata.num_row_groups
    return Shard(str(path), metadata.num_rows, metadata.row_group(0).num_rows if groups else 0)


def row_batches(
    shards: Sequence[Shard], epochs: int, seed: int, start: int, size: int, rank: int = 0, world_size: int = 1
) -> Iterator[OwnRows]:
    """Yields a worker's rows of each global batch of `size` rows, of all epochs from position `start` on.

    The last batch may have fewer. Of the rows of a batch the worker gets those at rank, rank + world_size, ….

    Each epoch takes the shards in a random order and the rows of a shard in a random order: rows were shuffled over
    shards when they were packed. Of a large shard, the order takes a row from each part in turn, so that a worker reads
    1 / world_size of its parts where world_size divides PARTS and the batch; it reads other shards whole. The next
    shard is read while this one is trained on, in this process: Ray Data would keep three more awake, each of which
    polls for signals a hundred times a second, and where training has all cores every poll interrupts it. On two cores
    steps took 13 % less while eight such were stopped.

    Raises:
        OSError: a shard cannot be read.
        ArrowInvalid: it is damaged.
    """
    total = epochs * sum(shard.rows for shard in shards)
    left: pa.Table | None = None
    with ThreadPoolExecutor(1, "shard") as reader:
        reads = (reader.submit(_read, part) for part in _own_parts(shards, epochs, seed, start, size, rank, world_size))
        read = next(reads, None)
        for begin in range(start, total, size):
            together = min(size, total - begin)
            own = len(range(rank, together, world_size))
            while read and (left is None or left.num_rows < own):
                ahead = next(reads, None)
                rows = read.result()
                left, read = rows if left is None else pa.concat_tables([left, rows]), ahead
            if own and left is not None:
                yield OwnRows(left.slice(0, own), own, together)
                left = left.slice(own)
            else:
                yield OwnRows(_first_row(shards[0]), 0, together)


@dataclass(frozen=True)
class _OwnPart:
    """The rows that a worker reads of one shard in one epoch, in training order."""

    path: str
    rows: NDArray[np.int64]
    group_rows: int


def _own_parts(
    shards: Sequence[Shard], epochs: int, seed: int, start: int, size: int, rank: int, world_size: int
) -> Iterator[_OwnPart]:
    position = 0
    for epoch in range(epochs):
        for index in np.random.default_rng([seed, epoch]).permutation(len(shards)):
            shard = shards[index]
            if position + shard.rows > start:
                places = np.arange(max(position, start), position + shard.rows)
                own = (places - start) % size % world_size == rank
                rows = _order(shard, (seed, epoch, int(index)))[places[own] - position]
                if len(rows):
                    yield _OwnPart(shard.path, rows, shard.part_rows)
            position += shard.rows


def _order(shard: Shard, seed: Sequence[int]) -> NDArray[np.int64]:
    """Returns the numbers of a shard's rows in the order in which an epoch takes them."""
    chance, size = np.random.default_rng(seed), shard.part_rows
    if not size:
        return chance.permutation(shard.rows)
    within = np.stack([chance.permutation(size) for _ in range(PARTS)], 1)
    parts = chance.permutation(PARTS)
    rest = np.arange(PARTS * size, shard.rows)
    return np.concatenate([(parts * size + within).ravel(), chance.permutation(rest)])


def _read(part: _OwnPart) -> pa.Table:
    with parquet.ParquetFile(part.path) as file:
        if not part.group_rows:
            return file.read().take(part.rows)
        groups, group_of = np.unique(part.rows // part.group_rows, return_inverse=True)
        # All groups but the file's last are full.
        return file.read_row_groups(groups.tolist()).take(group_of * part.group_rows + part.rows % part.group_rows)


def _first_row(shard: Shard) -> pa.Table:
    with parquet.ParquetFile(shard.path) as file:
        return pa.Table.from_batches([next(file.iter_batches(1))])
