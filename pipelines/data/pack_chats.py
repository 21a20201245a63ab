"""Packed rows of conversations with their loss masks, rendered on Ray Data."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import ray.data

from actors.model.chat import Chat, Rendered
from cluster.errors import UserError
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID, best_fit
from pipelines.data.chat_formats import Messages

BLOCK_CONVERSATIONS = 2_000


def render(conversations: Sequence[Messages], model: Path, context: int) -> list[Rendered]:
    """Renders conversations with the template that lies with `model`, in order.

    A conversation that is too long loses its last exchanges; one whose first exchange is too long is left out.
    """
    items = [{"index": index, "messages": json.dumps(messages)} for index, messages in enumerate(conversations)]
    blocks = -(-len(items) // BLOCK_CONVERSATIONS)
    dataset = ray.data.from_items(items, override_num_blocks=max(1, blocks)).map_batches(
        partial(_render_batch, model=model, context=context), batch_size=None, batch_format="pyarrow"
    )
    rows = sorted(dataset.take_all(), key=lambda row: row["index"])
    return [Rendered(list(row["token_ids"]), list(row["loss_mask"])) for row in rows]


def _render_batch(batch: pa.Table, model: Path, context: int) -> pa.Table:
    chat = Chat.of(model)
    found = [(row["index"], fit(chat, json.loads(row["messages"]), context)) for row in batch.to_pylist()]
    fitting = [(index, rendered) for index, rendered in found if rendered is not None]
    return pa.table(
        {
            "index": pa.array([index for index, _ in fitting], pa.int64()),
            "token_ids": pa.array([rendered.token_ids for _, rendered in fitting], pa.list_(pa.int32())),
            "loss_mask": pa.array([rendered.loss_mask for _, rendered in fitting], pa.list_(pa.bool_())),
        }
    )


def fit(chat: Chat, messages: Messages, context: int) -> Rendered | None:
    """Renders the longest beginning of a conversation that ends with the assistant and fits into `context` tokens."""
    ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
    for end in reversed(ends):
        rendered = chat.conversation(messages[:end])
        if len(rendered.token_ids) <= context:
            return rendered
    return None


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
