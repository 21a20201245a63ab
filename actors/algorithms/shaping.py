"""From the reward of an answer to the rewards of its tokens, and how strongly the reference holds."""

import torch
from torch import Tensor

# Ziegler et al. 2019, section 2.2: how fast the coefficient follows, and the largest relative error that counts.
ADAPTATION, LARGEST_ERROR = 0.1, 0.2


def overlong_penalty(lengths: Tensor, max_tokens: int, share: float) -> Tensor:
    """0 down to -1, linearly over the last `share` of the tokens that an answer may have (Yu et al. 2025, eq. 13).

    Args:
        lengths: [N], tokens drawn.
    """
    buffer = max_tokens * share
    return -((lengths - (max_tokens - buffer)) / buffer).clamp(0, 1) if buffer else torch.zeros_like(lengths)


def at_last_token(rewards: Tensor, answer: Tensor) -> Tensor:
    """[N] -> [N, T]: the reward of the answer at its last token, and nothing elsewhere."""
    last = answer.shape[1] - 1 - answer.flip(1).int().argmax(1)
    return torch.zeros(answer.shape, dtype=rewards.dtype, device=rewards.device).scatter(
        1, last.unsqueeze(1), rewards.unsqueeze(1)
    )


def adapted_coefficient(coefficient: float, divergence: float, target: float) -> float:
    """The next step's KL coefficient, such that the divergence nears the target (Ziegler et al. 2019, section 2.2).

    Args:
        divergence: mean KL of an answer in this step, in nats.
        target: what it should be.
    """
    error = min(max(divergence / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1 + ADAPTATION * error)
