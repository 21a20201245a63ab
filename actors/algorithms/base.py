"""A policy-gradient algorithm as data: functions, and an average over tokens. `cluster.recipe.rlhf.presets` has the
numbers of its paper."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.algorithms.losses import Clip, RolloutBatch, Targets, token_surrogate

# From the mask [N, T] of the tokens that are learned from and the most tokens of a completion to divisors of rows
# [N, 1] and of their sum.
Average = Callable[[Tensor, int], tuple[Tensor, int]]


def per_token(mask: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Weighs every token of the batch the same."""
    del max_tokens
    return _ones(mask), int(mask.sum())


def per_completion(mask: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Weighs every completion the same, and the tokens of one completion the same."""
    del max_tokens
    return mask.sum(1, keepdim=True).clamp(min=1), int(mask.any(1).sum())


def per_token_budget(mask: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Weighs every token of all batches the same: the divisor is the most tokens that the completions may have."""
    return _ones(mask), int(mask.any(1).sum()) * max_tokens


def _ones(mask: Tensor) -> Tensor:
    return torch.ones_like(mask[:, :1], dtype=torch.long)


@dataclass(frozen=True)
class Algorithm:
    """A policy-gradient algorithm. The learner's loop is the same for all of them.

    Attributes:
        targets: computes advantages [N, T] and, with a critic, its returns [N, T], from the batch, the reward of every
            token [N, T] (the completion's at its last token; the divergence's too, if it is in the reward) and the
            critic's values [N, T] or None.
        token_losses: computes the loss of every token and whether it was clipped, [N, T] each.
        average: divisors of the token losses of each row [N, 1] and of their sum, from the mask of the rows of one
            optimizer step and `rlhf.sampling.max_tokens`.
        value_losses: computes the critic's losses [N, T] from its new values; None without a critic.
    """

    targets: Callable[[RolloutBatch, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    token_losses: Callable[[RolloutBatch, Targets, Tensor, Clip], tuple[Tensor, Tensor]] = token_surrogate
    average: Average = per_token
    value_losses: Callable[[Tensor, Targets, Clip], Tensor] | None = None

    def divergence_total(self, mask: Tensor, max_tokens: int) -> int:
        """Returns the divisor of the summed divergence losses: as of `average`, but per token where that is per
        completion. The divergence is one of whole answers, where no token weighs less because its answer is long."""
        average = per_token if self.average is per_completion else self.average
        return average(mask, max_tokens)[1]
