"""The parts that policy-gradient algorithms share: the batch, its targets, and clipped surrogates."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster.recipe.rlhf.regularization import Importance
from cluster.recipe.rlhf.section import Rlhf


@dataclass(frozen=True)
class RolloutBatch:
    """Samples of several prompts, padded at the right.

    Attributes:
        input_ids: [N, T], prompt and answer.
        completion_mask: bool [N, T], which tokens the policy drew.
        behavior_logprobs: [N, T], log-probability of every drawn token under the weights that drew it; 0 elsewhere.
        rewards: [N].
        groups: [N], the prompt of each row; rows of one group begin with it.
        loss_mask: bool [N, T], the drawn tokens that are learned from.
    """

    input_ids: Tensor
    completion_mask: Tensor
    behavior_logprobs: Tensor
    rewards: Tensor
    groups: Tensor
    loss_mask: Tensor

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
    """The tensors that stay fixed over the optimizer steps on a batch; all [N, T].

    Attributes:
        advantages: how much better a token was than expected.
        old_logprobs: log-probabilities under the weights at the start of the step; None if the step is a single update,
            whose own log-probabilities are the same.
        ref_logprobs: log-probabilities under the reference model; None where nothing needs them.
        values: the critic's estimates (PPO), else None.
        returns: the returns that the estimates are trained towards (PPO), else None.
    """

    advantages: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
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


@dataclass(frozen=True)
class Clip:
    """Bounds of a clipped surrogate.

    Attributes:
        low, high: the ratio of new to old probabilities counts within [1 - low, 1 + high].
        dual: the most times that the ratio counts where the advantage is negative (Ye et al. 2020, eq. 5), or None.
        importance: bounds of the importance weight of tokens that other weights drew.
    """

    low: float
    high: float
    dual: float | None = None
    importance: Importance = field(default_factory=Importance)


def clip_for(settings: Rlhf) -> Clip:
    """Returns the bounds that the recipe sets, else the algorithm's."""
    found = settings.resolved
    return Clip(found.clip_range, found.clip_range_high, found.dual_clip, settings.importance)


def importance_weights(logprobs: Tensor, behavior_logprobs: Tensor, bounds: Importance) -> tuple[Tensor, Tensor]:
    """Computes each token's importance weight, within bounds, and whether it was out of them. [N, T] each.

    A token has the weight of its own two probabilities, and not of those of the whole answer, whose product fades with
    length: at 0.03 nats a token its mean is 0.7 after 1,024 tokens, and nearly 0 after 16,384. This leaves a bias: the
    distributions of the tokens before and after this one are those of the older weights, and the bounds cut weights
    off. The bias grows with the divergence of the two policies a token, and not with the length.

    Args:
        logprobs: under the policy that learns, without a gradient.
        behavior_logprobs: under the weights that drew the tokens.
    """
    weights = (logprobs - behavior_logprobs).exp()
    outside = (weights > bounds.max) | (weights < bounds.min)
    if bounds.method == "mask":
        return torch.where(outside, 0.0, weights), outside
    return weights.clamp(max=bounds.max), outside


def token_surrogate(batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Computes PPO's pessimistic surrogate with a ratio for every token (Schulman et al. 2017, eq. 7), as a loss.

    Returns:
        The loss of every token, and whether it was clipped; [N, T] each.
    """
    old_logprobs = old_logprobs_of(targets, logprobs)
    ratio = (logprobs - old_logprobs).exp()
    return _surrogate(ratio, old_logprobs, batch, targets, clip)


def sequence_surrogate(
    batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip: Clip, *, mean: bool
) -> tuple[Tensor, Tensor]:
    """Computes the surrogate with one ratio for a whole answer, whose gradient passes through each token at its own
    place and weight (GSPO-token, Zheng et al. 2025, eq. 14; with equal weights the gradient is that of the ratio).

    Args:
        mean: whether the ratio is the geometric mean of its tokens' ratios, else their product.

    Returns:
        The loss of the whole answer at each of its tokens, to be averaged over them, and whether it was clipped;
        [N, T] each.
    """
    old_logprobs = old_logprobs_of(targets, logprobs)
    steps = ((logprobs - old_logprobs).detach() * batch.completion_mask).sum(1, keepdim=True)
    length = batch.completion_mask.sum(1, keepdim=True).clamp(min=1)
    # Zero, with the gradient of log π at each token; the average over an answer's tokens divides by their number.
    score = (logprobs - logprobs.detach()) * (1 if mean else length)
    ratio = (steps / length if mean else steps).exp() * score.exp()
    return _surrogate(ratio, old_logprobs, batch, targets, clip)


def old_logprobs_of(targets: Targets, logprobs: Tensor) -> Tensor:
    """Returns the log-probabilities under the weights at the start of the step, which may be those of now."""
    return logprobs.detach() if targets.old_logprobs is None else targets.old_logprobs


def _surrogate(
    ratio: Tensor, old_logprobs: Tensor, batch: RolloutBatch, targets: Targets, clip: Clip
) -> tuple[Tensor, Tensor]:
    """Computes the clipped surrogate, times the importance weight of each token.

    Args:
        ratio: of new to old probabilities, [N, T].
    """
    weight, _ = importance_weights(old_logprobs, batch.behavior_logprobs, clip.importance)
    free = ratio * targets.advantages
    bounded = torch.minimum(free, ratio.clamp(1 - clip.low, 1 + clip.high) * targets.advantages)
    if clip.dual is not None:
        lowest = clip.dual * targets.advantages
        bounded = torch.where(targets.advantages < 0, torch.maximum(bounded, lowest), bounded)
    return -weight * bounded, bounded != free
