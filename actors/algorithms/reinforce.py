"""REINFORCE without a critic: RLOO, whose baseline is the prompt's other samples, and REINFORCE++."""

from functools import partial

from torch import Tensor

from actors.algorithms.base import Algorithm, per_completion
from actors.algorithms.losses import RolloutBatch, sequence_surrogate
from actors.algorithms.normalization import group_statistics, whitened


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Computes r_i - mean of the others (RLOO, section 3.2): K/(K - 1) of the difference from the mean of all K.

    A sample without others has no baseline, and teaches nothing. [N] -> [N].
    """
    own = group_statistics(rewards, groups)
    return (own.difference * own.size / (own.size - 1).clamp(min=1)).to(rewards.dtype)


def leave_one_out_targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """Returns one advantage for all tokens of a sample."""
    del values
    return leave_one_out(rewards.sum(1), batch.groups).unsqueeze(1) * batch.completion_mask, None


def whitened_targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """Returns the rewards from each token to the answer's end, undiscounted, whitened over the tokens of the batch."""
    del values
    following = rewards.flip(1).cumsum(1).flip(1)
    return whitened(following, batch.completion_mask, rewards), None


def whitened_group_targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """Returns r - mean over the samples of one prompt, whitened over the tokens of the batch."""
    del values
    whole = rewards.sum(1)
    difference = group_statistics(whole, batch.groups).difference.to(whole.dtype)
    scale = whole.unsqueeze(1).expand_as(rewards)
    return whitened(difference.unsqueeze(1).expand_as(rewards), batch.completion_mask, scale), None


# RLOO (Ahmadian et al. 2024, "Back to basics"): REINFORCE on whole answers, with the mean reward of the prompt's other
# samples as the baseline, and the divergence in the reward. Beyond the first optimizer step on a batch, PPO's clipped
# surrogate with the ratio of the whole answers' probabilities stands in for their log-probability; at the first step
# the two have the same gradient.
RLOO = Algorithm(leave_one_out_targets, partial(sequence_surrogate, mean=False), per_completion)

# REINFORCE++ (Hu et al. 2025): no critic and no groups; the divergence in each token's reward, and advantages that are
# normalized over the whole batch. With a baseline, the mean reward of the prompt's samples is subtracted before.
REINFORCE_PLUS_PLUS = Algorithm(whitened_targets)
REINFORCE_PLUS_PLUS_BASELINE = Algorithm(whitened_group_targets)
