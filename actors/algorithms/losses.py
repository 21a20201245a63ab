"""The parts that policy-gradient algorithms share: the batch, its targets, KL estimators, and clipped surrogates."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Truncation of the importance weight of tokens drawn by older weights (Yao et al. 2025, "TIS").
IMPORTANCE_LIMIT = 2.0


@dataclass(frozen=True)
class RolloutBatch:
    """Samples of several prompts, padded at the right.

    Attributes:
        input_ids: [N, T], prompt and answer.
        completion_mask: bool [N, T], which tokens the policy drew.
        behavior_logprobs: [N, T], log-probability of every drawn token under the weights that drew it; 0 elsewhere.
        rewards: [N].
        groups: [N], the prompt of each row; rows of one group begin with it.
    """

    input_ids: Tensor
    completion_mask: Tensor
    behavior_logprobs: Tensor
    rewards: Tensor
    groups: Tensor

    @property
    def width(self) -> int:
        """T."""
        return self.completion_mask.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and answer, [N]; T for a row without an answer."""
        return self.completion_mask.shape[1] - self.completion_mask.flip(1).int().argmax(1)

    def rows(self, index: Tensor) -> "RolloutBatch":
        """Returns some of the rows, as wide as the longest of them."""
        return RolloutBatch(**_cut(self, index, int(self.lengths[index].max())))


@dataclass(frozen=True)
class Targets:
    """What stays fixed over the optimizer steps on a batch; all [N, T].

    Attributes:
        advantages: how much better a token was than expected.
        old_logprobs: log-probabilities under the weights at the start of the step; None if the step is a single update,
            whose own log-probabilities are the same.
        ref_logprobs: log-probabilities under the reference model.
        values: the critic's estimates (PPO), else None.
        returns: what they should have been (PPO), else None.
    """

    advantages: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None

    def rows(self, index: Tensor, width: int) -> "Targets":
        """Returns the first `width` tokens of some of the rows."""
        return Targets(**_cut(self, index, width))


def _cut(table: RolloutBatch | Targets, index: Tensor, width: int) -> dict[str, Any]:
    return {
        name: None if value is None else value[index, :width] if value.dim() == 2 else value[index]
        for name, value in vars(table).items()
    }


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes log π/π_ref of drawn tokens: unbiased for KL(π, π_ref), and may be negative (Schulman 2020)."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes ½ (log π/π_ref)²: biased for KL(π, π_ref), but as a loss its gradient is the KL's (Schulman 2020)."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes (π_ref/π - 1) - log π_ref/π: unbiased, never negative, of low variance (Schulman 2020)."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


DIVERGENCES = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@dataclass(frozen=True)
class Clip:
    """The range within which the ratio of new to old probabilities counts: [1 - low, 1 + high]."""

    low: float
    high: float


def token_surrogate(batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Computes PPO's pessimistic surrogate with a ratio for every token (Schulman et al. 2017, eq. 7), as a loss.

    Returns:
        The loss of every token, and whether it was clipped; [N, T] each.
    """
    old_logprobs = _old_logprobs_of(targets, logprobs)
    return _surrogate(logprobs - old_logprobs, old_logprobs - batch.behavior_logprobs, targets.advantages, clip)


def sequence_surrogate(
    batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip: Clip, *, mean: bool
) -> tuple[Tensor, Tensor]:
    """Computes the surrogate with one ratio for a whole answer.

    Args:
        mean: whether the ratio is the geometric mean of its tokens' ratios, else their product.

    Returns:
        The loss of the whole answer at each of its tokens, to be averaged over them, and whether it was clipped;
        [N, T] each.
    """

    def pooled(values: Tensor) -> Tensor:
        total = (values * batch.completion_mask).sum(1, keepdim=True)
        return total / batch.completion_mask.sum(1, keepdim=True).clamp(min=1) if mean else total

    old_logprobs = _old_logprobs_of(targets, logprobs)
    step, lag = pooled(logprobs - old_logprobs), pooled(old_logprobs - batch.behavior_logprobs)
    return _surrogate(step, lag, targets.advantages, clip)


def _old_logprobs_of(targets: Targets, logprobs: Tensor) -> Tensor:
    return logprobs.detach() if targets.old_logprobs is None else targets.old_logprobs


def _surrogate(step: Tensor, lag: Tensor, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Computes the clipped surrogate, weighted by the truncated importance weight.

    Args:
        step: logarithm of the ratio of new to old probabilities.
        lag: logarithm of the ratio of old to behavior probabilities; 0 when the samples are on-policy.
    """
    ratio = step.exp()
    weight = lag.exp().clamp(max=IMPORTANCE_LIMIT)
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high) * advantages
    return -weight * torch.minimum(free, clipped), clipped < free
