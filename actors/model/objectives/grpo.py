"""GRPO (Shao et al. 2024): the other samples of the prompt are the baseline; KL to the reference is in the loss."""

import torch
from torch import Tensor

from actors.model.objectives.policy import RolloutBatch, Targets, clipped_surrogate, kl_k3

EPSILON = 1e-4


def group_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """(r - mean) / (std + ε) within the samples of one prompt (eq. 3, biased deviation). [N] -> [N]."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    size = counts[index].to(rewards.dtype)
    zeros = torch.zeros(len(counts), dtype=rewards.dtype, device=rewards.device)
    mean = zeros.index_add(0, index, rewards)[index] / size
    variance = zeros.index_add(0, index, (rewards - mean).square())[index] / size
    return (rewards - mean) / (variance.sqrt() + EPSILON)


def targets(batch: RolloutBatch, proximal: Tensor, reference: Tensor) -> Targets:
    """One advantage for all tokens of a sample."""
    advantages = group_advantages(batch.rewards, batch.groups).unsqueeze(1) * batch.answer
    return Targets(advantages, proximal, reference)


def token_losses(
    batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip_range: float, kl_coefficient: float
) -> tuple[Tensor, Tensor]:
    """Surrogate plus the KL penalty (k3) of every token, and whether it was clipped; [N, T] each, to be summed over
    `batch.answer`."""
    surrogate, clipped = clipped_surrogate(logprobs, targets.proximal, batch.behaviour, targets.advantages, clip_range)
    return surrogate + kl_coefficient * kl_k3(logprobs, targets.reference), clipped
