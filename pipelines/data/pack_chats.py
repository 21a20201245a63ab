"""Packed rows of conversations with their loss masks, rendered on Ray Data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import ray.data

from actors.model.chat import Chat, Rendered
from cluster.errors import UserError
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID, best_fit
from pipelines.data.chat_formats import Conversation
from pipelines.data.source_rows import BadRow, bad_row

BLOCK_CONVERSATIONS = 2_000


@dataclass(frozen=True)
class RenderedConversations:
    """Conversations as rows of tokens.

    Attributes:
        rows: the rows of every conversation that has any, in order.
        bad: conversations that the template cannot write.
        too_long: the number of conversations of which nothing fits.
        cut: the number of conversations that lost their last exchanges, or of which some rows do not fit.
    """

    rows: list[list[Rendered]]
    bad: list[BadRow]
    too_long: int
    cut: int


def render(conversations: Sequence[Conversation], model: Path, context: int) -> RenderedConversations:
    """Renders conversations with the template that lies with `model`, in order.

    A conversation that is too long loses its last exchanges; one whose first exchange is too long is left out.
    """
    items = [
        {"index": index, "conversation": json.dumps([item.messages, item.tools, item.untrained])}
        for index, item in enumerate(conversations)
    ]
    blocks = -(-len(items) // BLOCK_CONVERSATIONS)
    dataset = ray.data.from_items(items, override_num_blocks=max(1, blocks)).map_batches(
        partial(_render_batch, model=model, context=context), batch_size=None, batch_format="pyarrow"
    )
    rows, bad, too_long, cut = list[list[Rendered]](), list[BadRow](), 0, 0
    for row in sorted(dataset.take_all(), key=lambda row: row["index"]):
        item = conversations[row["index"]]
        fitting = [Rendered(list(ids), list(mask)) for ids, mask in zip(row["token_ids"], row["masks"], strict=True)]
        if row["refusal"]:
            bad.append(bad_row(item.place, f"{item.place}: {row['refusal']}", item.messages))
        elif fitting:
            rows.append(fitting)
            cut += row["cut"]
        else:
            too_long += 1
    return RenderedConversations(rows, bad, too_long, cut)


def _render_batch(batch: pa.Table, model: Path, context: int) -> pa.Table:
    chat = Chat.of(model)
    found: list[tuple[list[Rendered], bool, str]] = []
    for row in batch.to_pylist():
        try:
            found.append((*fit(chat, *json.loads(row["conversation"]), context=context), ""))
        except UserError as error:
            found.append(([], False, str(error)))
    ids = [[rendered.token_ids for rendered in rows] for rows, _, _ in found]
    masks = [[rendered.loss_mask for rendered in rows] for rows, _, _ in found]
    return pa.table(
        {
            "index": batch["index"],
            "token_ids": pa.array(ids, pa.list_(pa.list_(pa.int32()))),
            "masks": pa.array(masks, pa.list_(pa.list_(pa.bool_()))),
            "cut": [cut for _, cut, _ in found],
            "refusal": [refusal for *_, refusal in found],
        }
    )


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


def write_packed(conversations: Sequence[Rendered], context: int, padding_id: int, folder: Path) -> int:
    """Writes one shard of packed rows; returns their number.

    Raises:
        UserError: there is no conversation to write.
    """
    if not conversations:
        raise UserError(f"no conversation fits into model.context = {context} tokens")
    rows = best_fit([len(conversation.token_ids) for conversation in conversations], context)
    shape = (len(rows), context)
    input_ids = np.full(shape, padding_id, np.int32)
    document_ids = np.full(shape, PAD_DOCUMENT_ID, np.int32)
    loss_mask = np.zeros(shape, bool)
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members):
            end = start + len(conversations[member].token_ids)
            input_ids[row, start:end] = conversations[member].token_ids
            document_ids[row, start:end] = number
            loss_mask[row, start:end] = conversations[member].loss_mask
            start = end
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "row_id": pa.array(range(len(rows)), pa.int64()),
            "input_ids": pa.array(list(input_ids)),
            "document_ids": pa.array(list(document_ids)),
            "loss_mask": pa.array(list(loss_mask)),
        }
    )
    parquet.write_table(table, folder / "shard-00000.parquet")
    return len(rows)
