"""Second phase of fine-tuning's data: shuffles the rendered conversations and packs them into shards."""

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.run.atomic import atomic_write
from pipelines.corpus.tasks import Phase, Report
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID, best_fit
from pipelines.corpus.tokens.shards import write_shard
from pipelines.data.render_chats import rendered_file

# Tokens of a shard, of which training holds two, and a task one: 9 bytes each.
SHARD_TOKENS = 4 << 20
# Files of `write_order`.
ORDER, ENDS = "order.npy", "ends.npy"


@dataclass(frozen=True)
class ShardPart:
    """A shard and the places in the shuffled order of the conversations that go into it.

    Attributes:
        name: the name of its file, below the folder of shards.
        start: the first place.
        stop: the place after the last.
    """

    name: str
    start: int
    stop: int


def shard_parts(conversations: int, tokens: int, held_out: int, shard_tokens: int = SHARD_TOKENS) -> list[ShardPart]:
    """Divides shuffled conversations over shards of about `shard_tokens`: the first go to `held_out`, the others to
    `train`.

    Args:
        conversations: how many there are.
        tokens: how many tokens these have.
        held_out: how many of them to hold out.
        shard_tokens: the most tokens of a shard, but for the conversations' unequal lengths.
    """
    parts = list[ShardPart]()
    for name, start, stop in (("held_out", 0, held_out), ("train", held_out, conversations)):
        count = max(1, math.ceil(tokens * (stop - start) / conversations / shard_tokens))
        ends = [start + (stop - start) * number // count for number in range(count + 1)]
        parts += [
            ShardPart(f"{name}/shard-{number:05d}.parquet", ends[number], ends[number + 1]) for number in range(count)
        ]
    return parts


def write_order(counts: Sequence[int], seed: int, folder: Path) -> None:
    """Writes the two files in which every task of a `PackPhase` looks up its own part: the numbers of all conversations
    in a random order, 4 bytes each, and where the conversations of each rendered file end.

    Args:
        counts: conversations in each rendered file.
        seed: the seed of the order.
        folder: gets the two files.
    """
    with atomic_write(folder / ENDS) as side, side.open("wb") as file:
        np.save(file, np.cumsum(counts, dtype=np.int64))
    conversations = sum(counts)
    order = array("I", range(conversations))
    random.Random(f"sft {seed}").shuffle(order)
    with atomic_write(folder / ORDER) as side, side.open("wb") as file:
        np.save(file, np.frombuffer(order, np.uint32))


@dataclass(frozen=True)
class PackPhase(Phase):
    """Packs the conversations of shard `index`, each whole, into rows of equal length.

    Attributes:
        shards: all of them.
        folder: gets the shards.
        rendered: the folder of a `RenderPhase`.
        order: the folder of `write_order`.
        context: tokens of a row.
        padding_id: the token that rows are filled up with.
    """

    shards: tuple[ShardPart, ...]
    folder: Path
    rendered: Path
    order: Path
    context: int
    padding_id: int

    def only(self, index: int) -> "PackPhase":
        return replace(self, shards=(self.shards[index],))

    def __call__(self, index: int) -> Report:
        part = self.shards[index]
        wanted = np.load(self.order / ORDER, mmap_mode="r")[part.start : part.stop].astype(np.int64)
        columns = packed(self._conversations(wanted), self.context, self.padding_id)
        write_shard(self.path(index), columns)
        return {"rows": len(columns["input_ids"])}

    def path(self, index: int) -> Path:
        return self.folder / self.shards[index].name

    def _conversations(self, wanted: NDArray[np.int64]) -> pa.Table:
        """Takes conversations from their files; each file is mapped once."""
        ends = np.load(self.order / ENDS, mmap_mode="r")
        file_of = np.searchsorted(ends, wanted, side="right")
        by_file = np.argsort(file_of, kind="stable")
        tables = []
        for number in np.unique(file_of):
            begin = ends[number - 1] if number else 0
            own = wanted[by_file[file_of[by_file] == number]] - begin
            with pa.memory_map(str(rendered_file(self.rendered, number))) as file:
                tables.append(pa.ipc.open_file(file).read_all().take(own))
        return pa.concat_tables(tables).take(np.argsort(by_file))


def packed(conversations: pa.Table, context: int, padding_id: int) -> dict[str, NDArray[np.generic]]:
    """Packs the rows of conversations that a `RenderPhase` wrote; returns the columns of a shard, [rows, context]."""
    ids, masks = (_flat(conversations[name]) for name in ("token_ids", "loss_mask"))
    starts = ids.offsets.to_numpy()
    token_ids, trained = ids.values.to_numpy(), masks.values.to_numpy(zero_copy_only=False)
    rows = best_fit(np.diff(starts).tolist(), context)
    shape = (len(rows), context)
    input_ids = np.full(shape, padding_id, np.int32)
    document_ids = np.full(shape, PAD_DOCUMENT_ID, np.int32)
    loss_mask = np.zeros(shape, bool)
    for row, members in enumerate(rows):
        end = 0
        for number, member in enumerate(members):
            own = slice(starts[member], starts[member + 1])
            begin, end = end, end + own.stop - own.start
            input_ids[row, begin:end] = token_ids[own]
            document_ids[row, begin:end] = number
            loss_mask[row, begin:end] = trained[own]
    return {"input_ids": input_ids, "document_ids": document_ids, "loss_mask": loss_mask}


def _flat(column: pa.ChunkedArray) -> pa.ListArray:
    """Returns the rows of all conversations, one after the other."""
    return column.combine_chunks().flatten()
