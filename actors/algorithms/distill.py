"""On-policy distillation: the policy learns from a teacher's log-probabilities of the policy's own samples.

The advantage of a token is log π_teacher - log π at it, an unbiased estimate of the negative reverse divergence
KL(π ‖ π_teacher) of its distribution (Agarwal et al. 2024, "On-policy distillation of language models", with λ = 1 and
the reverse KL; Lu and Thinking Machines Lab 2025, "On-policy distillation"). Later tokens do not count for earlier ones
(a discount of 0), so that a student whose tokens all have the teacher's distributions is the optimum.
"""

from torch import Tensor

from actors.algorithms.base import Algorithm
from actors.algorithms.losses import RolloutBatch


def own_rewards(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """Returns the reward of each token as its advantage. [N, T] -> [N, T]."""
    del values
    return rewards * batch.completion_mask, None


# The divergence from the teacher is the reward: see its preset.
DISTILL = Algorithm(own_rewards)
