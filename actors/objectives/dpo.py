"""Direct preference optimization (Rafailov et al. 2023): the policy learns from pairs, without a reward model.

The implicit reward of an answer is β log(π(y|x) / π_ref(y|x)), and the loss is the reward model's,
-log σ(r_chosen - r_rejected) (eq. 7).
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from actors.model.completion_logprobs import completion_logprobs, pad_completions


@dataclass(frozen=True)
class PairBatch:
    """Answers of N pairs, the chosen before the rejected.

    Attributes:
        input_ids: [2N, T], prompt and answer, padded at the right.
        completion_mask: bool [2N, T], the tokens of the answer.
        ref_logprobs: [2N], the log-probability of every answer under the reference, in nats.
    """

    input_ids: Tensor
    completion_mask: Tensor
    ref_logprobs: Tensor


def dpo_losses(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Computes the losses and the margins r_chosen - r_rejected of pairs.

    Args:
        logprobs: [N, 2], log-probabilities of the chosen and the rejected answer under the policy, in nats.
        ref_logprobs: [N, 2], those under the reference.
        beta: how strongly the policy is held to the reference.

    Returns:
        [N] each.
    """
    ratios = logprobs - ref_logprobs
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    return -functional.logsigmoid(margins), margins


def answer_logprobs(model: Any, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Computes the log-probability of each answer of N pairs, in nats. [2N, T], bool [2N, T] -> [2N], float32."""
    pairs = torch.arange(len(input_ids), device=input_ids.device) // 2
    return completion_logprobs(model, input_ids, completion_mask, pairs).sum(1)


class DpoObjective:
    """The summed loss of pairs; the caller divides it by the pairs of the global batch."""

    unit = "pairs"
    dropout = False

    def __init__(self, padding: int, beta: float) -> None:
        self.padding, self.beta = padding, beta

    def collate(self, rows: pa.Table) -> PairBatch:
        """Makes a batch of pairs.

        Args:
            rows: `input_ids` (the chosen answer behind the prompt, then the rejected one behind it), `lengths` of the
                two, `prompt_length`, the tokens of the prompt, and `ref_logprobs` of the two.
        """
        sequences, prompt_lengths, ref_logprobs = [], [], []
        for row in rows.select(["input_ids", "lengths", "prompt_length", "ref_logprobs"]).to_pylist():
            middle = row["lengths"][0]
            sequences += [row["input_ids"][:middle], row["input_ids"][middle:]]
            prompt_lengths += [row["prompt_length"]] * 2
            ref_logprobs += row["ref_logprobs"]
        return PairBatch(*pad_completions(sequences, prompt_lengths, self.padding), torch.tensor(ref_logprobs))

    def count(self, batch: PairBatch) -> int:
        """Returns the number of pairs."""
        return len(batch.ref_logprobs) // 2

    def loss(self, model: Any, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss; pairs whose chosen answer has the higher reward, and the sum of margins."""
        logprobs = answer_logprobs(model, batch.input_ids, batch.completion_mask)
        losses, margins = dpo_losses(logprobs.view(-1, 2), batch.ref_logprobs.view(-1, 2), self.beta)
        return losses.sum(), {"right_pairs": int((margins > 0).sum()), "margins": float(margins.detach().sum())}
