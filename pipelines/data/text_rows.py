"""Mixes rows of the pre-training corpus into the rows of conversations, so that fine-tuning does not forget text."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from actors.trainer.data import shards_in
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID


def add_text_rows(conversations: Path, corpus: Path, share: float, seed: int) -> int:
    """Adds packed rows of the corpus to a shard of packed conversations; all their tokens count in the loss.

    The result is one shard: training takes shards one after the other, and rows within one in random order.

    Args:
        conversations: the shard, which is replaced.
        corpus: the folder of the corpus's training shards.
        share: share of the resulting rows to take from the corpus; less where the corpus has fewer.
        seed: decides which rows.

    Returns:
        The number of rows added.

    Raises:
        UserError: the corpus has no shards, or a damaged one.
    """
    chats = parquet.read_table(conversations)
    shards = shards_in(corpus)
    places = [(shard.path, row) for shard in shards for row in range(shard.rows)]
    wanted = min(len(places), round(chats.num_rows * share / (1 - share)))
    if not wanted:
        return 0
    chosen = sorted(random.Random(f"text rows {seed}").sample(places, wanted))
    columns = ["input_ids", "document_ids"]
    text = pa.concat_tables(
        parquet.read_table(shard.path, columns=columns).take([row for path, row in chosen if path == shard.path])
        for shard in shards
    )
    # `[rows, context]`, as the packer writes them.
    masks = [np.array(row) != PAD_DOCUMENT_ID for row in text["document_ids"].to_pylist()]
    numbers = pa.array(range(chats.num_rows, chats.num_rows + wanted), pa.int64())
    added = {"row_id": numbers, **{name: text[name] for name in columns}, "loss_mask": pa.array(masks)}
    parquet.write_table(
        pa.concat_tables([chats, pa.table(added).select(chats.column_names).cast(chats.schema)]), conversations
    )
    return wanted
