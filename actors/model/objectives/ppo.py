"""PPO for language models (Schulman et al. 2017; Ouyang et al. 2022): a critic, GAE, and KL to the reference in the
reward."""

import torch
from torch import Tensor

from actors.model.objectives.policy import RolloutBatch, Targets, clipped_surrogate, kl_k1

DISCOUNT = 1.0
GAE_LAMBDA = 0.95
EPSILON = 1e-8


def token_rewards(batch: RolloutBatch, logprobs: Tensor, reference: Tensor, kl_coefficient: float) -> Tensor:
    """-β·log π/π_ref at every drawn token, and the reward of the whole answer at its last. [N, T]."""
    rewards = -kl_coefficient * kl_k1(logprobs, reference) * batch.answer
    last = batch.answer.shape[1] - 1 - batch.answer.flip(1).int().argmax(1)
    rewards[torch.arange(len(rewards), device=rewards.device), last] += batch.rewards
    return rewards


def generalised_advantages(
    rewards: Tensor, values: Tensor, answer: Tensor, discount: float = DISCOUNT, decay: float = GAE_LAMBDA
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the drawn tokens. [N, T] -> [N, T].

    Args:
        rewards: reward of drawing token t.
        values: value of the state in which token t is drawn.
        answer: which tokens were drawn; contiguous in a row. The value after the last is 0.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        drawn = answer[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        following = torch.where(drawn, delta + discount * decay * following, 0.0)
        next_value = torch.where(drawn, values[:, t], 0.0)
        advantages[:, t] = following
    return advantages


def targets(batch: RolloutBatch, proximal: Tensor, reference: Tensor, values: Tensor, kl_coefficient: float) -> Targets:
    """Whitened advantages, and returns for the critic.

    Args:
        values: [N, T], value of the state in which token t is drawn.
    """
    rewards = token_rewards(batch, proximal, reference, kl_coefficient)
    advantages = generalised_advantages(rewards, values, batch.answer)
    drawn = advantages[batch.answer]
    white = (advantages - drawn.mean()) / (drawn.std(unbiased=False) + EPSILON) * batch.answer
    return Targets(white, proximal, reference, values, advantages + values)


def token_losses(batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """The surrogate of every token and whether it was clipped. [N, T] each."""
    return clipped_surrogate(logprobs, targets.proximal, batch.behaviour, targets.advantages, clip_range)


def value_losses(values: Tensor, targets: Targets, clip_range: float) -> Tensor:
    """Half the larger of the squared errors with and without clipping the step from the old value. [N, T]."""
    if targets.values is None or targets.returns is None:
        raise ValueError("a value loss needs the targets of a critic")
    near = targets.values + (values - targets.values).clamp(-clip_range, clip_range)
    errors = (values - targets.returns).square(), (near - targets.returns).square()
    return 0.5 * torch.maximum(*errors)
