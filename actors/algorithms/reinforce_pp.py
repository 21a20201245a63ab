"""REINFORCE++ (Hu et al. 2025): no critic and no groups; the divergence in each token's reward, and advantages that are
normalized over the whole batch."""

from torch import Tensor

from actors.algorithms.base import Algorithm
from actors.algorithms.losses import RolloutBatch, whitened


def targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """The rewards from each token to the answer's end, undiscounted, whitened over the tokens of the batch."""
    del values
    following = rewards.flip(1).cumsum(1).flip(1)
    return whitened(following, batch.answer), None


REINFORCE_PLUS_PLUS = Algorithm(targets, kl_in="reward")
