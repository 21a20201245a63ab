"""DAPO (Yu et al. 2025): GRPO with four changes.

Clip-higher (section 3.1) lets unlikely tokens grow; dynamic sampling (3.2) replaces prompts whose samples all got one
reward; every token of the batch weighs the same (3.3, eq. 8); answers near the length limit are punished softly (3.4,
eq. 13, over the last fifth as in the paper's experiments). The paper leaves out the divergence:
`rlhf.kl_coefficient: 0`.
"""

from actors.model.objectives.algorithm import Algorithm
from actors.model.objectives.grpo import targets
from actors.model.objectives.policy import Clip

DAPO = Algorithm(targets, clip=Clip(0.2, 0.28), overlong_share=0.2, dynamic_sampling=True)
