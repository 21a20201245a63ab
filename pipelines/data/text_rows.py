"""Last phase of fine-tuning's data, if wanted: mixes rows of the pre-training corpus into the shards of conversations.

Without them the model forgets how to continue text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from actors.trainer.data import Shard
from pipelines.corpus.tasks import Report
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID
from pipelines.corpus.tokens.shards import write_table


def text_row_counts(rows: Sequence[int], available: int, share: float) -> list[int]:
    """Returns how many rows of text each shard gets, so that they are `share` of all rows together.

    Args:
        rows: rows of conversations in each shard.
        available: rows of text there are; the shards get no more.
    """
    wanted = min(available, round(sum(rows) * share / (1 - share)))
    ends = [round(wanted * int(end) / max(1, sum(rows))) for end in np.cumsum(rows)]
    return np.diff([0, *ends]).tolist()


@dataclass(frozen=True)
class TextRowsPhase:
    """Copies shard `index` with rows of the corpus behind its own, all tokens of which count in the loss.

    They are in one shard because training takes shards one after the other, and the rows of one in random order.

    Attributes:
        shards: packed conversations.
        targets: the files to write.
        corpus: the corpus's training shards.
        counts: rows of text that each shard gets.
        seed: decides which rows.
    """

    shards: tuple[Path, ...]
    targets: tuple[Path, ...]
    corpus: tuple[Shard, ...]
    counts: tuple[int, ...]
    seed: int

    def __call__(self, index: int) -> Report:
        chats = parquet.read_table(self.shards[index])
        text = self._rows(index)
        if text:
            rows = pa.concat_tables(text)
            documents = rows["document_ids"].combine_chunks()
            masks = compute.not_equal(documents.values, PAD_DOCUMENT_ID)
            rows = rows.append_column("loss_mask", pa.ListArray.from_arrays(documents.offsets, masks))
            chats = pa.concat_tables([chats, rows.select(chats.column_names).cast(chats.schema)])
        write_table(self.targets[index], chats)
        return {"text_rows": self.counts[index]}

    def _rows(self, index: int) -> list[pa.Table]:
        """Reads this shard's section of all chosen rows, which stand in the corpus's order: a task reads few shards."""
        total, begin = sum(shard.rows for shard in self.corpus), sum(self.counts[:index])
        chosen = sorted(random.Random(f"text rows {self.seed}").sample(range(total), sum(self.counts)))
        own = np.array(chosen[begin : begin + self.counts[index]], np.int64)
        tables, first = [], 0
        for shard in self.corpus:
            places = own[(own >= first) & (own < first + shard.rows)] - first
            if len(places):
                tables.append(parquet.read_table(shard.path, columns=["input_ids", "document_ids"]).take(places))
            first += shard.rows
        return tables
