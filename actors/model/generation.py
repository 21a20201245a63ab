"""Continuations of held-out texts, sampled at each checkpoint and stored beside the true continuations."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import torch

from actors.model.attention.packed import PAD_DOCUMENT_ID
from actors.model.microbatch import DataParallelRank, pad_rows
from actors.model.sharding.fsdp import WithLoss

# The most tokens of an opening that is cut from a text without turns.
OPENING_TOKENS = 16
# Without gradients, a row takes little memory.
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Opening:
    """The beginning of a held-out text, and its true continuation.

    Attributes:
        is_prompt: whether the continuation is an answer, which can be right or wrong.
    """

    token_ids: list[int]
    continuation: list[int]
    is_prompt: bool


def openings(tables: Iterable[pa.Table], count: int) -> list[Opening]:
    """Cuts the first `count` documents of packed rows: a conversation at its first trained turn, others after at most
    OPENING_TOKENS tokens."""
    found = (_opening(*document) for rows in tables for document in _documents(rows))
    return list(islice((opening for opening in found if opening.token_ids), count))


def _documents(rows: pa.Table) -> Iterator[tuple[list[int], list[bool] | None]]:
    """Yields the token ids of each document, and its loss mask where the rows have one."""
    for row in rows.to_pylist():
        ids, documents, loss_mask = row["input_ids"], row["document_ids"], row.get("loss_mask")
        for document in sorted(set(documents) - {PAD_DOCUMENT_ID}):
            places = [index for index, found in enumerate(documents) if found == document]
            mask = None if loss_mask is None else [loss_mask[index] for index in places]
            yield [ids[index] for index in places], mask


def _opening(token_ids: list[int], loss_mask: list[bool] | None) -> Opening:
    if loss_mask is None:
        cut = min(OPENING_TOKENS, len(token_ids) // 2)
        return Opening(token_ids[:cut], token_ids[cut:], is_prompt=False)
    begin = loss_mask.index(True)
    end = next((index for index in range(begin, len(loss_mask)) if not loss_mask[index]), len(loss_mask))
    return Opening(token_ids[:begin], token_ids[begin:end], is_prompt=True)


@torch.no_grad()
def continuations(
    model: WithLoss, given: Sequence[Opening], tokens: int, end: int, worker: DataParallelRank
) -> list[list[int]]:
    """Generates greedy continuations of at most `tokens` tokens each, up to the token `end`, without it.

    Every worker calls this with the same openings and generates all of them.
    """
    model.eval()
    written: list[list[int]] = []
    for begin in range(0, len(given), ROWS_AT_ONCE):
        prompts = [opening.token_ids for opening in given[begin : begin + ROWS_AT_ONCE]]
        # Padded at the left: all rows end at the position where generation begins.
        ids = pad_rows(prompts, end, left=True)
        mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0, left=True)
        # Not under autocast, which would cast every frozen weight again for each token.
        found = model.generate(
            input_ids=ids.to(worker.device),
            attention_mask=mask.to(worker.device),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            # FSDP gathers parameters in step: no worker stops before the last one does.
            synced_gpus=worker.world_size > 1,
        )
        written += [_up_to(row, end) for row in found[:, ids.shape[1] :].tolist()]
    model.train()
    return written


def continuation_metrics(
    tokenizer: Any, given: Sequence[Opening], written: Sequence[list[int]], shown: int
) -> dict[str, Any]:
    """Decodes the first `shown` continuations, and for prompts computes the share answered as in the data.

    Case, spaces and the end of the turn do not count in that share.
    """

    def text(token_ids: list[int]) -> str:
        return tokenizer.decode(token_ids, skip_special_tokens=True).strip()

    samples = [
        {"given": text(opening.token_ids), "written": text(tokens), "wanted": text(opening.continuation)}
        for opening, tokens in zip(given, written, strict=True)
    ]
    found: dict[str, Any] = {"samples": samples[:shown]}
    if samples and all(opening.is_prompt for opening in given):
        equal = [_words(sample["written"]) == _words(sample["wanted"]) for sample in samples]
        found["held_out_exact"] = sum(equal) / len(equal)
    return found


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _up_to(token_ids: list[int], end: int) -> list[int]:
    return token_ids[: token_ids.index(end)] if end in token_ids else token_ids
