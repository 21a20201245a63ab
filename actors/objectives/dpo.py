"""Direct preference optimization (Rafailov et al. 2023): the policy learns from pairs, without a reward model.

Its reward of an answer is β log(π(y|x) / π_ref(y|x)), the log-ratio to the reference, and the loss is the reward
model's, -log σ(r_chosen - r_rejected) (eq. 7).
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from actors.model.causal_lm import next_token_losses


@dataclass(frozen=True)
class PairBatch:
    """Answers of N pairs, the chosen before the rejected.

    Attributes:
        input_ids: [2N, T], prompt and answer, padded at the right.
        answer: bool [2N, T], the tokens of the answer.
        reference: [2N], the log-probability of every answer under the reference, in nats.
    """

    input_ids: Tensor
    answer: Tensor
    reference: Tensor


def dpo_losses(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The losses and the margins r_chosen - r_rejected of pairs.

    Args:
        policy: [N, 2], log-probabilities of the chosen and the rejected answer, in nats.
        reference: [N, 2], those under the reference.
        beta: how strongly the policy is held to the reference.

    Returns:
        [N] each.
    """
    ratios = policy - reference
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    return -functional.logsigmoid(margins), margins


def answer_logprobs(model: Any, input_ids: Tensor, answer: Tensor) -> Tensor:
    """The log-probability of each row's answer, in nats. [B, T], bool [B, T] -> [B], float32."""
    losses = next_token_losses(model, input_ids, answer)
    rows = answer[:, 1:].nonzero()[:, 0]
    return losses.new_zeros(len(input_ids)).index_add(0, rows, -losses)


def padded_answers(sequences: list[list[int]], prompts: list[int], padding: int) -> tuple[Tensor, Tensor]:
    """Prompts with their answers as a batch, and which tokens are the answers'.

    Args:
        sequences: the tokens of each, prompt and answer.
        prompts: how many of them are the prompt's.
        padding: the token that fills up.

    Returns:
        ids [B, T] and bool [B, T].
    """
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in sequences], True, padding)
    places = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row) for row in sequences])
    return ids, (places >= torch.tensor(prompts)[:, None]) & (places < ends[:, None])


class DpoObjective:
    """The summed loss of pairs (the caller divides by the pairs of the global batch)."""

    unit = "pairs"

    def __init__(self, padding: int, beta: float) -> None:
        self.padding, self.beta = padding, beta

    def collate(self, rows: pa.Table) -> PairBatch:
        """Tensors of pairs: rows of `input_ids` (the chosen answer behind the prompt, then the rejected one behind it),
        `lengths` of the two, `prompt` tokens of each, and `reference`, their log-probabilities."""
        sequences, prompts, reference = [], [], []
        for row in rows.select(["input_ids", "lengths", "prompt", "reference"]).to_pylist():
            middle = row["lengths"][0]
            sequences += [row["input_ids"][:middle], row["input_ids"][middle:]]
            prompts += [row["prompt"]] * 2
            reference += row["reference"]
        return PairBatch(*padded_answers(sequences, prompts, self.padding), torch.tensor(reference))

    def count(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.reference) // 2

    def loss(self, model: Any, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """The summed loss; pairs whose chosen answer has the higher reward, and the margins' sum."""
        policy = answer_logprobs(model, batch.input_ids, batch.answer)
        losses, margins = dpo_losses(policy.view(-1, 2), batch.reference.view(-1, 2), self.beta)
        return losses.sum(), {"right_pairs": int((margins > 0).sum()), "margins": float(margins.detach().sum())}
