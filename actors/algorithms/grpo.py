"""GRPO (Shao et al. 2024) and its variants Dr. GRPO, DAPO and GSPO: the prompt's other samples are the baseline.

GRPO's paper averages the tokens of each answer first, which favors long wrong answers over short ones (Liu et al.
2025); here every token of the batch weighs the same, as in DAPO (Yu et al. 2025, eq. 8).
"""

from functools import partial

from torch import Tensor

from actors.algorithms.base import Algorithm, per_completion, per_token_budget
from actors.algorithms.losses import RolloutBatch, sequence_surrogate
from actors.algorithms.normalization import group_statistics

EPSILON = 1e-4


def standard_scores(rewards: Tensor, groups: Tensor) -> Tensor:
    """Computes (r - mean) / (std + ε) within the samples of one prompt (section 4.1.2). [N] -> [N]."""
    own = group_statistics(rewards, groups)
    return (own.difference / (own.deviation + EPSILON)).to(rewards.dtype)


def targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """Returns the standard score as one advantage for all tokens of a sample."""
    del values
    return standard_scores(rewards.sum(1), batch.groups).unsqueeze(1) * batch.completion_mask, None


def unscaled_targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """Returns r - mean over the samples of one prompt as one advantage for all tokens of a sample."""
    del values
    whole = rewards.sum(1)
    difference = group_statistics(whole, batch.groups).difference.to(whole.dtype)
    return difference.unsqueeze(1) * batch.completion_mask, None


GRPO = Algorithm(targets)

# Dr. GRPO (Liu et al. 2025, "Understanding R1-Zero-like training", section 3.2): GRPO without its two biases. The
# difference from the mean is not divided by the group's deviation, which favors questions that are too easy or too
# hard, nor are token losses divided by the answer's own length.
DR_GRPO = Algorithm(unscaled_targets, average=per_token_budget)

# DAPO (Yu et al. 2025): GRPO, where every token of the batch weighs the same (section 3.3, eq. 8); its other changes
# are settings.
DAPO = Algorithm(targets)

# GSPO (Zheng et al. 2025): GRPO with one importance ratio for an answer, the geometric mean of its tokens' ratios (eq.
# 5 to 7), as the reward is one for the answer too. Such ratios stay close to 1, so the clip range is narrow.
GSPO = Algorithm(targets, partial(sequence_surrogate, mean=True), per_completion)
