"""Dr. GRPO (Liu et al. 2025, "Understanding R1-Zero-like training", section 3.2): GRPO without its two biases.

The difference from the mean is not divided by the group's deviation, which favours questions that are too easy or too
hard, nor are token losses divided by the answer's own length. The paper leaves out the divergence:
`rlhf.kl_coefficient: 0`.
"""

from torch import Tensor

from actors.model.objectives.algorithm import Algorithm, by_budget
from actors.model.objectives.groups import compare
from actors.model.objectives.policy import RolloutBatch


def targets(batch: RolloutBatch, rewards: Tensor, values: Tensor | None) -> tuple[Tensor, None]:
    """r - mean over the samples of one prompt, for all tokens of a sample."""
    del values
    return compare(rewards.sum(1), batch.groups).difference.unsqueeze(1) * batch.answer, None


DR_GRPO = Algorithm(targets, average=by_budget)
