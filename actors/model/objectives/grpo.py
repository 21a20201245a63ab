"""GRPO (Shao et al. 2024): the other samples of the prompt are the baseline.

The paper averages the tokens of each answer first, which favours long wrong answers over short ones (Liu et al. 2025);
here every token of the batch weighs the same, as in DAPO (Yu et al. 2025, eq. 8).
"""

from torch import Tensor

from actors.model.objectives.algorithm import Algorithm
from actors.model.objectives.groups import compare
from actors.model.objectives.policy import RolloutBatch

EPSILON = 1e-4


def standard_scores(rewards: Tensor, groups: Tensor) -> Tensor:
    """(r - mean) / (std + ε) within the samples of one prompt (section 4.1.2). [N] -> [N]."""
    own = compare(rewards, groups)
    return own.difference / (own.deviation + EPSILON)


def targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """One advantage for all tokens of a sample."""
    del values
    return standard_scores(rewards.sum(1), batch.groups).unsqueeze(1) * batch.answer, None


GRPO = Algorithm(targets)
