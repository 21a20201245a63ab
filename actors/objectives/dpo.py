"""Preference optimization on pairs (DPO, Rafailov et al. 2023, and its variants): the policy learns without a reward
model.

The implicit reward of an answer is β log(π(y|x) / π_ref(y|x)), and the margin of a pair is that of the chosen answer
minus that of the rejected one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from actors.model.completion_logprobs import pad_completions
from actors.model.microbatch import DataParallelRank
from actors.objectives.answers import AnswerObjective, split_answers
from actors.objectives.reference import Reference

PairLoss = Literal["dpo", "ipo"]


@dataclass(frozen=True)
class PairBatch:
    """Answers of N pairs, the chosen before the rejected.

    Attributes:
        input_ids: [2N, T], prompt and answer, padded at the right.
        completion_mask: bool [2N, T], the tokens of the answer.
        weights: [N], the weight of each pair.
    """

    input_ids: Tensor
    completion_mask: Tensor
    weights: Tensor


def pair_losses(log_ratios: Tensor, beta: float, loss: PairLoss, label_smoothing: float = 0.0) -> Tensor:
    """Computes the losses of pairs.

    - dpo: -(1 - ε) log σ(m) - ε log σ(-m) of the margin m = β (h_chosen - h_rejected): Rafailov et al. 2023, eq. 7, and
      with ε above 0 conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"), for labels of which a
      share ε is wrong.
    - ipo: (h_chosen - h_rejected - 1 / (2 β))² (Azar et al. 2023, eq. 17, whose τ is β): the difference of log-ratios
      has a target, beyond which certain preferences do not push it.

    Args:
        log_ratios: [N, 2], log(π / π_ref) of the chosen and the rejected answer, in nats.
        beta: how strongly the policy is held to the reference.
        loss: which of the two.
        label_smoothing: ε.

    Returns:
        [N].
    """
    difference = log_ratios[:, 0] - log_ratios[:, 1]
    if loss == "ipo":
        return (difference - 1 / (2 * beta)).square()
    margins = beta * difference
    return -(1 - label_smoothing) * functional.logsigmoid(margins) - label_smoothing * functional.logsigmoid(-margins)


class PairObjective:
    """The summed loss of pairs, each times its weight; the caller divides it by the pairs of the global batch.

    Args:
        padding: the token id that rows are filled up with.
        reference: of the log-ratios.
        beta: how strongly the policy is held to the reference.
        loss: the loss of a pair.
        label_smoothing: the share of pairs that are taken to be labeled wrongly.
    """

    unit = "pairs"
    dropout = False

    def __init__(
        self, padding: int, reference: Reference, beta: float, loss: PairLoss = "dpo", label_smoothing: float = 0.0
    ) -> None:
        self.padding, self.reference = padding, reference
        self.beta, self.name, self.label_smoothing = beta, loss, label_smoothing
        self.proof = AnswerObjective(padding)

    def place(self, worker: DataParallelRank) -> None:
        """Moves the reference to the worker's device, and shards it as the policy is."""
        self.reference.place(worker)

    def collate(self, rows: pa.Table) -> PairBatch:
        """Makes a batch of pairs.

        Args:
            rows: `input_ids` (the chosen answer behind the prompt, then the rejected one behind it), `lengths` of the
                two, `prompt_length`, the tokens of the prompt, and `weight`.
        """
        return PairBatch(*pad_completions(*split_answers(rows), self.padding), torch.tensor(rows["weight"].to_pylist()))

    def count(self, batch: PairBatch) -> int:
        """Returns the number of pairs."""
        return len(batch.weights)

    def loss(self, model: Any, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss; pairs whose chosen answer has the higher reward, and the sum of margins."""
        pairs = torch.arange(len(batch.input_ids), device=batch.input_ids.device) // 2
        ratios = self.reference.log_ratios(model, batch.input_ids, batch.completion_mask, pairs).view(-1, 2)
        losses = pair_losses(ratios, self.beta, self.name, self.label_smoothing)
        margins = self.beta * (ratios[:, 0] - ratios[:, 1]).detach()
        figures = {"right_pairs": int((margins > 0).sum()), "margins": float(margins.sum())}
        return (batch.weights * losses).sum(), figures
