"""What the policy-gradient algorithms share: the batch, log-probabilities, divergence and the clipped surrogate."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actors.model.language import hidden_states

# Truncation of the importance weight of tokens drawn by older weights (Yao et al. 2025, "TIS").
IMPORTANCE_LIMIT = 2.0


@dataclass(frozen=True)
class RolloutBatch:
    """Samples of several prompts, padded at the right.

    Attributes:
        input_ids: [N, T], prompt and answer.
        answer: bool [N, T], which tokens the policy drew.
        behaviour: [N, T], log-probability of every drawn token under the weights that drew it; 0 elsewhere.
        rewards: [N].
        groups: [N], which prompt a row answers.
    """

    input_ids: Tensor
    answer: Tensor
    behaviour: Tensor
    rewards: Tensor
    groups: Tensor

    def rows(self, index: Tensor) -> "RolloutBatch":
        """Some of the rows."""
        return RolloutBatch(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Targets:
    """What the samples taught before any update; all [N, T].

    Attributes:
        advantages: how much better a token was than expected.
        proximal: log-probabilities under the weights at the start of the step.
        reference: log-probabilities under the model that training must stay near.
        values: the critic's estimates (PPO), else None.
        returns: what they should have been (PPO), else None.
    """

    advantages: Tensor
    proximal: Tensor
    reference: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None

    def rows(self, index: Tensor) -> "Targets":
        """Some of the rows."""
        return replace(self, **{name: value[index] for name, value in vars(self).items() if value is not None})


def answer_logprobs(model: Any, batch: RolloutBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of drawn tokens and the entropy of the distribution they were drawn from.

    Returns:
        two [N, T] float32 tensors, 0 outside the answers. Logits are made for drawn tokens alone.
    """
    states = hidden_states(model, batch.input_ids)
    drawn = batch.answer[:, 1:]
    logits = model.lm_head(states[:, :-1][drawn]).float() / temperature
    distribution = logits.log_softmax(-1)
    chosen = distribution.gather(1, batch.input_ids[:, 1:][drawn].unsqueeze(1)).squeeze(1)
    entropy = -(distribution.exp() * distribution).sum(-1)
    return _place(chosen, batch.answer), _place(entropy, batch.answer)


def _place(values: Tensor, answer: Tensor) -> Tensor:
    whole = torch.zeros(answer.shape, dtype=values.dtype, device=values.device)
    drawn = answer.clone()
    drawn[:, 0] = False
    return whole.masked_scatter(drawn, values)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log π/π_ref of drawn tokens: unbiased for KL(π, π_ref), and may be negative (Schulman 2020)."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(π_ref/π - 1) - log π_ref/π: unbiased, never negative, of low variance (Schulman 2020)."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1 - log_ratio


def clipped_surrogate(
    logprobs: Tensor, proximal: Tensor, behaviour: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate (Schulman et al. 2017, eq. 7), as a loss, times the truncated importance weight of
    proximal over behaviour, which is 1 when the samples are on-policy.

    Returns:
        the loss of every token, and whether it was clipped.
    """
    ratio = (logprobs - proximal).exp()
    weight = (proximal - behaviour).exp().clamp(max=IMPORTANCE_LIMIT)
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return -weight * torch.minimum(free, clipped), clipped < free
