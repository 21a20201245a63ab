"""Last phase of fine-tuning's data, if wanted: mixes rows of the pre-training corpus into the shards of conversations.

Without them the model forgets how to continue text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from actors.trainer.data import Shard
from pipelines.corpus.tasks import Phase, Report
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


def chosen_rows(total: int, counts: Sequence[int], seed: int) -> list[NDArray[np.int64]]:
    """Draws the rows of text of each shard: sections of all chosen rows in the corpus's order, so that a task reads few
    of the corpus's shards.

    Args:
        total: rows of the corpus.
        counts: rows of text that each shard gets.
        seed: decides which rows.
    """
    chosen = np.array(sorted(random.Random(f"text rows {seed}").sample(range(total), sum(counts))), np.int64)
    return np.split(chosen, np.cumsum(counts)[:-1])


@dataclass(frozen=True)
class TextRowsPhase(Phase):
    """Copies shard `index` with rows of the corpus behind its own, all tokens of which count in the loss.

    They are in one shard because training takes shards one after the other, and the rows of one in random order.

    Attributes:
        shards: packed conversations.
        targets: the files to write.
        corpus: the corpus's training shards.
        chosen: rows of text that each shard gets, counted from the first row of `corpus`.
    """

    shards: tuple[Path, ...]
    targets: tuple[Path, ...]
    corpus: tuple[Shard, ...]
    chosen: tuple[NDArray[np.int64], ...]

    def only(self, index: int) -> "TextRowsPhase":
        own, ends = self.chosen[index], np.cumsum([shard.rows for shard in self.corpus])
        needed = np.unique(np.searchsorted(ends, own, side="right"))
        first = int(needed[0]) if len(needed) else 0
        skipped = int(ends[first - 1]) if first else 0
        corpus = self.corpus[first : int(needed[-1]) + 1] if len(needed) else ()
        return replace(
            self, shards=(self.shards[index],), targets=(self.targets[index],), corpus=corpus, chosen=(own - skipped,)
        )

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
        return {"text_rows": len(self.chosen[index])}

    def _rows(self, index: int) -> list[pa.Table]:
        own = self.chosen[index]
        tables, first = [], 0
        for shard in self.corpus:
            places = own[(own >= first) & (own < first + shard.rows)] - first
            if len(places):
                tables.append(parquet.read_table(shard.path, columns=["input_ids", "document_ids"]).take(places))
            first += shard.rows
        return tables
