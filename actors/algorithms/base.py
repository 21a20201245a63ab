"""What makes a policy-gradient algorithm: two functions, how tokens are averaged, and its paper's constants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from actors.algorithms.losses import Clip, RolloutBatch, Targets, token_surrogate
from cluster.recipe.rlhf import Rlhf

DEFAULT_CLIP = Clip(0.2, 0.2)
Average = Callable[[Tensor, int], tuple[Tensor, int]]


def by_token(answer: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Every drawn token of the batch weighs the same."""
    del max_tokens
    return torch.ones_like(answer[:, :1], dtype=torch.long), int(answer.sum())


def by_answer(answer: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Every answer weighs the same, and so do the tokens of one answer."""
    del max_tokens
    return answer.sum(1, keepdim=True).clamp(min=1), len(answer)


def by_budget(answer: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Every token weighs the same in every batch: what divides them is the longest that the answers may be."""
    return torch.ones_like(answer[:, :1], dtype=torch.long), len(answer) * max_tokens


@dataclass(frozen=True)
class Algorithm:
    """A policy-gradient algorithm. The learner's loop is the same for all of them.

    Attributes:
        targets: what the samples taught. From the batch, the reward of every token [N, T] (the answer's at its last
            token; the divergence's too, if it is in the reward) and the critic's values [N, T] or None; to the
            advantages [N, T] and, with a critic, its returns [N, T].
        token_losses: the loss of every token and whether it was clipped, [N, T] each.
        average: by what the token losses of each row are divided [N, 1], and then their sum; from `answer` of the rows
            of one optimizer step, and `rlhf.sampling.max_tokens`.
        value_losses: the critic's losses [N, T] from its new values; None without a critic.
        kl_in: where the divergence goes unless the recipe says otherwise.
        clip: likewise.
        overlong_share: likewise, see `shaping.overlong_penalty`.
        dynamic_sampling: whether prompts whose answers all got one reward are replaced by others.
    """

    targets: Callable[[RolloutBatch, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    token_losses: Callable[[RolloutBatch, Targets, Tensor, Clip], tuple[Tensor, Tensor]] = token_surrogate
    average: Average = by_token
    value_losses: Callable[[Tensor, Targets, Clip], Tensor] | None = None
    kl_in: Literal["reward", "loss"] = "loss"
    clip: Clip = DEFAULT_CLIP
    overlong_share: float = 0.0
    dynamic_sampling: bool = False

    def clip_for(self, settings: Rlhf) -> Clip:
        """The recipe's clip range, else the algorithm's. A recipe's lower bound alone is the upper one too."""
        low = settings.clip_range or self.clip.low
        return Clip(low, settings.clip_range_high or settings.clip_range or self.clip.high)
