"""PPO for language models (Schulman et al. 2017; Ouyang et al. 2022): a critic, GAE, and the KL in the reward."""

import torch
from torch import Tensor

from actors.algorithms.base import Algorithm
from actors.algorithms.losses import Clip, RolloutBatch, Targets
from actors.algorithms.normalization import whitened

DISCOUNT = 1.0
GAE_LAMBDA = 0.95


def generalized_advantages(
    rewards: Tensor, values: Tensor, completion_mask: Tensor, discount: float = DISCOUNT, decay: float = GAE_LAMBDA
) -> Tensor:
    """Computes generalized advantages (Schulman et al. 2016, eq. 16) over the drawn tokens. [N, T] -> [N, T].

    Args:
        rewards: the reward of drawing token t.
        values: the value of the state in which token t is drawn.
        completion_mask: bool, the tokens that were drawn; those between the turns of a conversation are passed over.
            The value after the last is 0.
        discount: γ.
        decay: λ.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        drawn = completion_mask[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        following = torch.where(drawn, delta + discount * decay * following, following)
        next_value = torch.where(drawn, values[:, t], next_value)
        advantages[:, t] = torch.where(drawn, following, 0.0)
    return advantages


def targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns whitened advantages, and returns for the critic.

    Args:
        values: [N, T], the value of the state in which token t is drawn.

    Raises:
        ValueError: there are no values.
    """
    if values is None:
        raise ValueError("PPO needs a critic's values")
    advantages = generalized_advantages(rewards, values, batch.completion_mask)
    return whitened(advantages, batch.completion_mask, rewards, values), advantages + values


def value_losses(values: Tensor, targets: Targets, clip: Clip) -> Tensor:
    """Computes half the larger squared error with and without clipping the step from the old value (Ouyang et al. 2022,
    after Schulman's code). [N, T].

    Raises:
        ValueError: the targets have no old values or no returns.
    """
    if targets.values is None or targets.returns is None:
        raise ValueError("a value loss needs the targets of a critic")
    near = targets.values + (values - targets.values).clamp(-clip.low, clip.high)
    errors = (values - targets.returns).square(), (near - targets.returns).square()
    return 0.5 * torch.maximum(*errors)


PPO = Algorithm(targets, value_losses=value_losses)
