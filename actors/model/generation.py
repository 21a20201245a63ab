"""What a model writes while it learns: continuations of held-out texts, beside how these go on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import torch

from actors.model.attention import PAD_DOCUMENT_ID
from actors.model.fsdp import WithLoss
from actors.model.microbatch import WorkerPart

# Of a text without turns, how much is given.
OPENING_TOKENS = 16
# Without gradients, a row takes little memory.
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Opening:
    """The beginning of a held-out text, and how it goes on.

    Attributes:
        is_prompt: whether what follows is an answer, which can be right or wrong.
    """

    token_ids: list[int]
    continuation: list[int]
    is_prompt: bool


def openings(tables: Iterable[pa.Table], count: int) -> list[Opening]:
    """Of the first `count` documents of packed rows: a conversation up to its first trained turn, or a few words."""
    found = (_opening(*document) for rows in tables for document in _documents(rows))
    return list(islice((opening for opening in found if opening.token_ids), count))


def _documents(rows: pa.Table) -> Iterator[tuple[list[int], list[bool] | None]]:
    for row in rows.to_pylist():
        ids, documents, trained = row["input_ids"], row["document_ids"], row.get("trained")
        for document in sorted(set(documents) - {PAD_DOCUMENT_ID}):
            places = [index for index, found in enumerate(documents) if found == document]
            flags = None if trained is None else [trained[index] for index in places]
            yield [ids[index] for index in places], flags


def _opening(token_ids: list[int], trained: list[bool] | None) -> Opening:
    if trained is None:
        cut = min(OPENING_TOKENS, len(token_ids) // 2)
        return Opening(token_ids[:cut], token_ids[cut:], is_prompt=False)
    begin = trained.index(True)
    end = next((index for index in range(begin, len(trained)) if not trained[index]), len(trained))
    return Opening(token_ids[:begin], token_ids[begin:end], is_prompt=True)


@torch.no_grad()
def continuations(
    model: WithLoss, given: Sequence[Opening], tokens: int, end: int, part: WorkerPart
) -> list[list[int]]:
    """Greedy continuations of at most `tokens` tokens each, up to the token `end`, without it.

    Every worker calls this with the same openings and writes all of them.
    """
    model.eval()
    written: list[list[int]] = []
    for begin in range(0, len(given), ROWS_AT_ONCE):
        ids, mask = _padded([opening.token_ids for opening in given[begin : begin + ROWS_AT_ONCE]], end)
        # Not under autocast, which would cast every frozen weight again for each token.
        found = model.generate(
            input_ids=ids.to(part.device),
            attention_mask=mask.to(part.device),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            # FSDP gathers parameters in step: no worker stops before the last one does.
            synced_gpus=part.workers > 1,
        )
        written += [_up_to(row, end) for row in found[:, ids.shape[1] :].tolist()]
    model.train()
    return written


def read(tokenizer: Any, given: Sequence[Opening], written: Sequence[list[int]], shown: int) -> dict[str, Any]:
    """The first `shown` continuations as text; of prompts also the share answered as they are in the data, but for
    case, spaces and the end of the turn."""

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


def _padded(rows: Sequence[list[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, T] ids and whether they are real; rows end together, where they go on."""
    ids = torch.full((len(rows), max(len(row) for row in rows)), padding)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, -len(row) :] = torch.tensor(row)
        mask[index, -len(row) :] = 1
    return ids, mask


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _up_to(token_ids: list[int], end: int) -> list[int]:
    return token_ids[: token_ids.index(end)] if end in token_ids else token_ids
