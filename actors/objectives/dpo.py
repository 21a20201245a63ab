"""Direct preference optimization (Rafailov et al. 2023): the policy learns from pairs, without a reward model.

The implicit reward of an answer is β log(π(y|x) / π_ref(y|x)), and the loss is the reward model's,
-log σ(r_chosen - r_rejected) (eq. 7).
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from actors.model.attention import set_attention
from actors.model.completion_logprobs import completion_logprobs, pad_completions
from actors.model.dropout import without_dropout
from actors.model.fsdp import FSDPModule
from actors.model.microbatch import DataParallelRank


@dataclass(frozen=True)
class PairBatch:
    """Answers of N pairs, the chosen before the rejected.

    Attributes:
        input_ids: [2N, T], prompt and answer, padded at the right.
        completion_mask: bool [2N, T], the tokens of the answer.
    """

    input_ids: Tensor
    completion_mask: Tensor


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
    """The summed loss of pairs; the caller divides it by the pairs of the global batch.

    The reference computes each batch beside the policy, on its device, in its precision and with the same padding:
    before the first step both give the same numbers, and every margin is 0. Computed at another time or place they
    would differ by rounding, in bfloat16 by margins of 0.006.

    Args:
        padding: the token id that rows are filled up with.
        beta: how strongly the policy is held to the reference.
        reference: a causal language model, which is not trained.
    """

    unit = "pairs"
    dropout = False

    def __init__(self, padding: int, beta: float, reference: Any) -> None:
        self.padding, self.beta = padding, beta
        self.reference = reference.requires_grad_(False)
        without_dropout(self.reference)
        set_attention(self.reference)
        self._compute: Callable[..., Tensor] = lambda function, *batch: function(self.reference, *batch)

    def place(self, worker: DataParallelRank) -> None:
        """Moves the reference to the worker's device, and shards it as the policy is."""
        self._compute = FSDPModule(self.reference, worker.world_size, worker.device, nullcontext)

    def collate(self, rows: pa.Table) -> PairBatch:
        """Makes a batch of pairs.

        Args:
            rows: `input_ids` (the chosen answer behind the prompt, then the rejected one behind it), `lengths` of the
                two, and `prompt_length`, the tokens of the prompt.
        """
        sequences, prompt_lengths = [], []
        for row in rows.select(["input_ids", "lengths", "prompt_length"]).to_pylist():
            middle = row["lengths"][0]
            sequences += [row["input_ids"][:middle], row["input_ids"][middle:]]
            prompt_lengths += [row["prompt_length"]] * 2
        return PairBatch(*pad_completions(sequences, prompt_lengths, self.padding))

    def count(self, batch: PairBatch) -> int:
        """Returns the number of pairs."""
        return len(batch.input_ids) // 2

    def loss(self, model: Any, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss; pairs whose chosen answer has the higher reward, and the sum of margins."""
        logprobs = answer_logprobs(model, batch.input_ids, batch.completion_mask)
        with torch.no_grad():
            ref_logprobs = self._compute(answer_logprobs, batch.input_ids, batch.completion_mask)
        losses, margins = dpo_losses(logprobs.view(-1, 2), ref_logprobs.view(-1, 2), self.beta)
        return losses.sum(), {"right_pairs": int((margins > 0).sum()), "margins": float(margins.detach().sum())}
