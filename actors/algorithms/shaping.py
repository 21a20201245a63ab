"""Rewards of tokens from the reward of an answer, and the weight of the divergence."""

import torch
from torch import Tensor

# Ziegler et al. 2019, section 2.2: how fast the coefficient follows, and the largest relative error that counts.
ADAPTATION, LARGEST_ERROR = 0.1, 0.2


def overlong_penalty(lengths: Tensor, max_tokens: int, share: float) -> Tensor:
    """Computes a penalty from 0 to -1, linear over the last `share` of an answer's budget (Yu et al. 2025, eq. 13).

    Args:
        lengths: [N], tokens drawn.
        max_tokens: the most tokens that an answer may have.
        share: of `max_tokens`.

    Returns:
        [N].
    """
    buffer = max_tokens * share
    return -((lengths - (max_tokens - buffer)) / buffer).clamp(0, 1) if buffer else torch.zeros_like(lengths)


def at_last_token(rewards: Tensor, completion_mask: Tensor) -> Tensor:
    """Puts the reward of each answer at its last token, and 0 elsewhere. [N], [N, T] -> [N, T]."""
    last = completion_mask.shape[1] - 1 - completion_mask.flip(1).int().argmax(1)
    return torch.zeros(completion_mask.shape, dtype=rewards.dtype, device=rewards.device).scatter(
        1, last.unsqueeze(1), rewards.unsqueeze(1)
    )


def adapted_coefficient(coefficient: float, divergence: float, target: float) -> float:
    """Returns the next step's KL coefficient, which moves the divergence to its target (Ziegler et al. 2019, sec. 2.2).

    Args:
        divergence: the mean KL of an answer in this step, in nats.
        target: the mean KL to reach, in nats.
    """
    error = min(max(divergence / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1 + ADAPTATION * error)
