"""REINFORCE without a critic: RLOO, whose baseline is the prompt's other samples, and REINFORCE++, which has none."""

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


# RLOO (Ahmadian et al. 2024, "Back to basics"): REINFORCE on whole answers, with the mean reward of the prompt's other
# samples as the baseline, and the divergence in the reward. Beyond the first optimizer step on a batch, PPO's clipped
# surrogate with the ratio of the whole answers' probabilities stands in for their log-probability; at the first step
# the two have the same gradient.
RLOO = Algorithm(leave_one_out_targets, partial(sequence_surrogate, mean=False), per_completion, kl_in="reward")

# REINFORCE++ (Hu et al. 2025): no critic and no groups; the divergence in each token's reward, and advantages that are
# normalized over the whole batch.
REINFORCE_PLUS_PLUS = Algorithm(whitened_targets, kl_in="reward")
