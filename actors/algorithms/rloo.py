"""RLOO (Ahmadian et al. 2024, "Back to basics"): REINFORCE on whole answers, with the mean reward of the prompt's other
samples as the baseline, and the divergence in the reward.

Beyond the first optimizer step on a batch, PPO's clipped surrogate with the ratio of the whole answers' probabilities
stands in for their log-probability; at the first step the two have the same gradient.
"""

from functools import partial

from torch import Tensor

from actors.algorithms.base import Algorithm, by_answer
from actors.algorithms.grpo import group_statistics
from actors.algorithms.losses import RolloutBatch, sequence_surrogate


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """r_i - mean of the others (section 3.2): K/(K - 1) of the difference from the mean of all K. [N] -> [N].

    A sample without others has no baseline, and teaches nothing.
    """
    own = group_statistics(rewards, groups)
    return own.difference * own.size / (own.size - 1).clamp(min=1)


def targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """One advantage for all tokens of a sample."""
    del values
    return leave_one_out(rewards.sum(1), batch.groups).unsqueeze(1) * batch.answer, None


RLOO = Algorithm(targets, partial(sequence_surrogate, mean=False), by_answer, kl_in="reward")
