"""A policy-gradient algorithm as data: two functions, an average over tokens, and the constants of its paper."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from actors.algorithms.losses import Clip, RolloutBatch, Targets, token_surrogate
from cluster.recipe.rlhf import Rlhf

DEFAULT_CLIP = Clip(0.2, 0.2)
# From a completion mask [N, T] and the most tokens of a completion to divisors of rows [N, 1] and of their sum.
Average = Callable[[Tensor, int], tuple[Tensor, int]]


def per_token(completion_mask: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Weighs every drawn token of the batch the same."""
    del max_tokens
    return torch.ones_like(completion_mask[:, :1], dtype=torch.long), int(completion_mask.sum())


def per_completion(completion_mask: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Weighs every completion the same, and the tokens of one completion the same."""
    del max_tokens
    return completion_mask.sum(1, keepdim=True).clamp(min=1), len(completion_mask)


def per_token_budget(completion_mask: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Weighs every token of all batches the same: the divisor is the most tokens that the completions may have."""
    return torch.ones_like(completion_mask[:, :1], dtype=torch.long), len(completion_mask) * max_tokens


@dataclass(frozen=True)
class Algorithm:
    """A policy-gradient algorithm. The learner's loop is the same for all of them.

    Attributes:
        targets: computes advantages [N, T] and, with a critic, its returns [N, T], from the batch, the reward of every
            token [N, T] (the completion's at its last token; the divergence's too, if it is in the reward) and the
            critic's values [N, T] or None.
        token_losses: computes the loss of every token and whether it was clipped, [N, T] each.
        average: divisors of the token losses of each row [N, 1] and of their sum, from the completion mask of the rows
            of one optimizer step and `rlhf.sampling.max_tokens`.
        value_losses: computes the critic's losses [N, T] from its new values; None without a critic.
        kl_in: where the divergence is charged unless the recipe says otherwise.
        clip: the clip range unless the recipe says otherwise.
        overlong_share: the argument of `shaping.overlong_penalty` unless the recipe says otherwise.
        dynamic_sampling: whether prompts whose completions all got one reward are replaced by others.
    """

    targets: Callable[[RolloutBatch, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    token_losses: Callable[[RolloutBatch, Targets, Tensor, Clip], tuple[Tensor, Tensor]] = token_surrogate
    average: Average = per_token
    value_losses: Callable[[Tensor, Targets, Clip], Tensor] | None = None
    kl_in: Literal["reward", "loss"] = "loss"
    clip: Clip = DEFAULT_CLIP
    overlong_share: float = 0.0
    dynamic_sampling: bool = False

    def clip_for(self, settings: Rlhf) -> Clip:
        """Returns the recipe's clip range, else the algorithm's. A recipe's lower bound alone is the upper one too."""
        low = settings.clip_range or self.clip.low
        return Clip(low, settings.clip_range_high or settings.clip_range or self.clip.high)
