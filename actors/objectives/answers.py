"""Rows of two answers behind a prompt, and the loss by which the export of a model that learned from them is proven."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from actors.model.completion_logprobs import pad_completions
from actors.objectives.reference import answer_logprobs


@dataclass(frozen=True)
class AnswerBatch:
    """N answers.

    Attributes:
        input_ids: [N, T], prompt and answer, padded at the right.
        completion_mask: bool [N, T], the tokens of the answer.
    """

    input_ids: Tensor
    completion_mask: Tensor


def split_answers(rows: pa.Table) -> tuple[list[list[int]], list[int]]:
    """Splits rows of two answers, each behind the prompt.

    Args:
        rows: `input_ids` (both end to end), `lengths` of the two, and `prompt_length`.

    Returns:
        The sequences, two a row, and the lengths of their prompts.
    """
    sequences, prompt_lengths = [], []
    for row in rows.select(["input_ids", "lengths", "prompt_length"]).to_pylist():
        middle = row["lengths"][0]
        sequences += [row["input_ids"][:middle], row["input_ids"][middle:]]
        prompt_lengths += [row["prompt_length"]] * 2
    return sequences, prompt_lengths


class AnswerObjective:
    """The negative log-probability of answers, which needs no reference: a folder and a model in memory that give the
    same are the same."""

    unit = "answers"
    dropout = False

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def collate(self, rows: pa.Table) -> AnswerBatch:
        """Makes a batch of both answers of each row; columns as of `split_answers`."""
        return AnswerBatch(*pad_completions(*split_answers(rows), self.padding))

    def count(self, batch: AnswerBatch) -> int:
        """Returns the number of answers."""
        return len(batch.input_ids)

    def loss(self, model: Any, batch: AnswerBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss in nats, and no further metrics."""
        answers = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        return -answer_logprobs(model, batch.input_ids, batch.completion_mask, answers).sum(), {}
