"""GSPO (Zheng et al. 2025): GRPO with one importance ratio for an answer, the geometric mean of its tokens' ratios
(eq. 5 to 7), as the reward is one for the answer too. Such ratios stay close to 1, so the clip range is narrow (section
5.1)."""

from functools import partial

from actors.model.objectives.algorithm import Algorithm, by_answer
from actors.model.objectives.grpo import targets
from actors.model.objectives.policy import Clip, sequence_surrogate

GSPO = Algorithm(targets, partial(sequence_surrogate, mean=True), by_answer, clip=Clip(3e-4, 4e-4))
