"""First phase of fine-tuning's data: reads the conversations of one part of a source and renders them to tokens.

Each part becomes a file of Arrow's IPC format, which later tasks map into memory and take single conversations from.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.model.chat import Chat, Rendered
from cluster.errors import UserError
from cluster.run.atomic import atomic_write
from pipelines.corpus import heartbeat
from pipelines.corpus.tasks import Phase, Report
from pipelines.data.chat_formats import Conversation, ConversationCounts, conversations
from pipelines.data.row_files import bad_row
from pipelines.data.source_rows import SourceSplit, split_rows, write_bad_rows

# A conversation: the tokens of its rows, and which of them are trained.
RENDERED = pa.schema([("token_ids", pa.list_(pa.list_(pa.int32()))), ("loss_mask", pa.list_(pa.list_(pa.bool_())))])
# Conversations that a task holds at once.
_BATCH = 1000


@dataclass(frozen=True)
class RenderPhase(Phase):
    """Writes the conversations of split `index` that have anything to train on, in order, to `folder`.

    Attributes:
        splits: parts of the sources.
        folder: gets a file of conversations for each, and one of the rows that cannot be used, if there are any.
        model: the folder of the tokenizer with its chat template.
        context: tokens of a row.
        seed: the seed for sources that are functions.
        first: the number of the first split in the names of files.
    """

    splits: tuple[SourceSplit, ...]
    folder: Path
    model: Path
    context: int
    seed: int
    first: int = 0

    def only(self, index: int) -> "RenderPhase":
        return replace(self, splits=(self.splits[index],), first=self.first + index)

    def __call__(self, index: int) -> Report:
        chat, counts, found = Chat.of(self.model), ConversationCounts(), Counter[str]()
        read = conversations(split_rows(self.splits[index], self.seed), counts)
        with atomic_write(self.output(index)) as side, pa.ipc.new_file(str(side), RENDERED) as writer:
            rendered = self._rendered(read, chat, counts, found)
            while batch := list(islice(rendered, _BATCH)):
                writer.write_batch(rendered_batch(batch))
                heartbeat.progress()
        write_bad_rows(counts.bad, self.bad_file(index))
        return {
            **{name: found[name] for name in ("conversations", "tokens", "too_long", "cut")},
            "layouts": dict(counts.layouts),
            "ignored": dict(counts.ignored),
            "bad": len(counts.bad),
            "first_bad": counts.bad[0].reason if counts.bad else "",
        }

    def output(self, index: int) -> Path:
        return rendered_file(self.folder, self.first + index)

    def bad_file(self, index: int) -> Path:
        return rendered_file(self.folder, self.first + index).with_suffix(".jsonl")

    def _rendered(
        self, items: Iterable[Conversation], chat: Chat, counts: ConversationCounts, found: Counter[str]
    ) -> Iterator[list[Rendered]]:
        """Yields the rows of each conversation that has any, and counts the others."""
        for item in items:
            try:
                rows, cut = fit(chat, item.messages, item.tools, item.untrained, context=self.context)
            except UserError as error:
                counts.bad.append(bad_row(item.place, f"{item.place}: {error}", item.messages))
                continue
            if not rows:
                found["too_long"] += 1
                continue
            found.update(conversations=1, cut=cut, tokens=sum(len(row.token_ids) for row in rows))
            yield rows


def rendered_file(folder: Path, number: int) -> Path:
    """Returns the file of the conversations of split `number`, counted over all sources."""
    return folder / f"part-{number:05d}.arrow"


def rendered_batch(conversations: Sequence[Sequence[Rendered]]) -> pa.RecordBatch:
    """Returns conversations, each the rows that it is rendered to, as a `RenderPhase` writes them."""
    columns = {
        "token_ids": [[row.token_ids for row in rows] for rows in conversations],
        "loss_mask": [[row.loss_mask for row in rows] for rows in conversations],
    }
    return pa.RecordBatch.from_pydict(columns, RENDERED)


def fit(
    chat: Chat,
    messages: Sequence[dict[str, object]],
    tools: Sequence[object] | None = None,
    untrained: Sequence[int] = (),
    *,
    context: int,
) -> tuple[list[Rendered], bool]:
    """Renders the longest beginning of every row of a conversation that ends with a trained turn and fits.

    Returns:
        The rows of which something fits, and whether anything was left out.

    Raises:
        UserError: the template cannot write the conversation.
    """
    rows = chat.training_rows(messages, tools, untrained)
    fitting = [shortened for row in rows if (shortened := _shortened(row, context))]
    return fitting, fitting != rows


def _shortened(row: Rendered, context: int) -> Rendered | None:
    """Returns the longest beginning of a row that ends where a trained turn does, in `context` tokens at most."""
    if len(row.token_ids) <= context:
        return row
    mask = np.array(row.loss_mask)
    ends = np.flatnonzero(mask[:-1] & ~mask[1:]) + 1
    fitting = ends[ends <= context]
    if not len(fitting):
        return None
    return Rendered(row.token_ids[: fitting[-1]], row.loss_mask[: fitting[-1]])
