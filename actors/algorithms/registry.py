"""The algorithms by their names in the recipe: those that learn from rewards, and distillation."""

from actors.algorithms.base import Algorithm
from actors.algorithms.distill import DISTILL
from actors.algorithms.grpo import DAPO, DR_GRPO, GRPO, GSPO
from actors.algorithms.ppo import PPO
from actors.algorithms.reinforce import REINFORCE_PLUS_PLUS, REINFORCE_PLUS_PLUS_BASELINE, RLOO

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": PPO,
    "grpo": GRPO,
    "dr_grpo": DR_GRPO,
    "rloo": RLOO,
    "reinforce++": REINFORCE_PLUS_PLUS,
    "reinforce++-baseline": REINFORCE_PLUS_PLUS_BASELINE,
    "dapo": DAPO,
    "gspo": GSPO,
}


def algorithm_named(name: str) -> Algorithm:
    """Returns the algorithm of that name in the recipe."""
    return DISTILL if name == "distill" else ALGORITHMS[name]
