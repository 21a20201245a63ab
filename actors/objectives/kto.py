"""Kahneman–Tversky optimization (KTO, Ethayarajh et al. 2024): the policy learns from single answers that are good or
bad."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from actors.model.completion_logprobs import pad_completions
from actors.model.microbatch import DataParallelRank, evaluate
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.answers import AnswerObjective, split_answers
from actors.objectives.reference import Reference

# The column that `with_reference_point` adds.
REFERENCE_POINT = "reference_point"


@dataclass(frozen=True)
class JudgedBatch:
    """Answers to N prompts.

    Attributes:
        input_ids: [N, T], prompt and answer, padded at the right.
        completion_mask: bool [N, T], the tokens of the answer.
        good: [N], 1 of a good answer, -1 of a bad one.
        weights: [N], the weight of each answer.
        reference_point: [N], z0 of the global batch, in nats.
    """

    input_ids: Tensor
    completion_mask: Tensor
    good: Tensor
    weights: Tensor
    reference_point: Tensor


def kto_losses(log_ratios: Tensor, reference_point: Tensor, good: Tensor, beta: float) -> Tensor:
    """Computes λ - v of answers, with λ of 1 (Ethayarajh et al. 2024, eq. 7 and 8).

    The value v is σ(β (h - z0)) of a good answer and σ(β (z0 - h)) of a bad one, h being its log-ratio.

    Args:
        log_ratios: [N], log(π / π_ref), in nats.
        reference_point: [N] or [1], z0, in nats; no gradient goes through it.
        good: [N], 1 or -1.
        beta: how strongly the policy is held to the reference.

    Returns:
        [N].
    """
    return torch.sigmoid(-good.to(log_ratios.dtype) * beta * (log_ratios - reference_point))


class KtoObjective:
    """The summed loss of answers, each times its weight; the caller divides it by the answers of the global batch.

    The reference point z0, an estimate of KL(π ‖ π_ref), is the mean log-ratio of answers to other prompts, at least 0.
    It is computed over the global batch before its losses are (`with_reference_point`), so that micro-batches and
    workers do not change it.

    Args:
        padding: the token id that rows are filled up with.
        reference: of the log-ratios.
        beta: how strongly the policy is held to the reference.
        desirable: λ of good answers.
        undesirable: λ of bad answers.
    """

    unit = "answers"
    dropout = False

    def __init__(
        self, padding: int, reference: Reference, beta: float, desirable: float = 1.0, undesirable: float = 1.0
    ) -> None:
        self.padding, self.reference, self.beta = padding, reference, beta
        self.desirable, self.undesirable = desirable, undesirable
        self.proof = AnswerObjective(padding)

    def place(self, worker: DataParallelRank) -> None:
        """Moves the reference to the worker's device, and shards it as the policy is."""
        self.reference.place(worker)

    def with_reference_point(self, model: WithLoss, rows: pa.Table, worker: DataParallelRank) -> pa.Table:
        """Adds z0 of a global batch to each of its rows; every worker has to call it."""
        with model.measuring(_Mismatched(self)) as measured:
            found = evaluate(model, measured, [rows], worker)
        point = max(0.0, found["log_ratios"] / found["answers"])
        return rows.append_column(REFERENCE_POINT, pa.array([point] * rows.num_rows, pa.float32()))

    def collate(self, rows: pa.Table) -> JudgedBatch:
        """Makes a batch of answers.

        Args:
            rows: `input_ids` (the answer behind its prompt, then an answer to another prompt behind it), `lengths` of
                the two, `prompt_length`, the tokens of the prompt, `good` (1 or -1), `weight`, and, unless it is 0,
                `reference_point`.
        """
        sequences, prompt_lengths = split_answers(rows)
        known = REFERENCE_POINT in rows.column_names
        return JudgedBatch(
            *pad_completions(sequences[::2], prompt_lengths[::2], self.padding),
            good=torch.tensor(rows["good"].to_pylist()),
            weights=torch.tensor(rows["weight"].to_pylist()),
            reference_point=torch.tensor(rows[REFERENCE_POINT].to_pylist() if known else [0.0] * rows.num_rows),
        )

    def count(self, batch: JudgedBatch) -> int:
        """Returns the number of answers."""
        return len(batch.good)

    def loss(self, model: Any, batch: JudgedBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss; the answers on the right side of the reference point, the sum of their distances
        from it as rewards, and that of the reference points."""
        answers = torch.arange(len(batch.good), device=batch.good.device)
        ratios = self.reference.log_ratios(model, batch.input_ids, batch.completion_mask, answers)
        losses = kto_losses(ratios, batch.reference_point, batch.good, self.beta)
        importance = torch.where(batch.good > 0, self.desirable, self.undesirable)
        margins = batch.good * self.beta * (ratios.detach() - batch.reference_point)
        figures = {
            "right_answers": int((margins > 0).sum()),
            "margins": float(margins.sum()),
            "reference_points": float(batch.reference_point.sum()),
        }
        return (batch.weights * importance * losses).sum(), figures


class _Mismatched:
    """Sums the log-ratios of answers behind prompts that they do not answer."""

    unit = "answers"
    dropout = False

    def __init__(self, objective: KtoObjective) -> None:
        self.padding, self.reference = objective.padding, objective.reference

    def collate(self, rows: pa.Table) -> JudgedBatch:
        sequences, prompt_lengths = split_answers(rows)
        none = torch.zeros(rows.num_rows)
        return JudgedBatch(*pad_completions(sequences[1::2], prompt_lengths[1::2], self.padding), none, none, none)

    def count(self, batch: JudgedBatch) -> int:
        return len(batch.good)

    def loss(self, model: Any, batch: JudgedBatch) -> tuple[Tensor, dict[str, float]]:
        answers = torch.arange(len(batch.good), device=batch.good.device)
        total = self.reference.log_ratios(model, batch.input_ids, batch.completion_mask, answers).sum()
        return total, {"log_ratios": float(total)}
