"""The algorithms by their names in the recipe."""

from actors.model.objectives.algorithm import Algorithm
from actors.model.objectives.dapo import DAPO
from actors.model.objectives.dr_grpo import DR_GRPO
from actors.model.objectives.grpo import GRPO
from actors.model.objectives.gspo import GSPO
from actors.model.objectives.ppo import PPO
from actors.model.objectives.reinforce import REINFORCE_PLUS_PLUS
from actors.model.objectives.rloo import RLOO

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": PPO,
    "grpo": GRPO,
    "dr_grpo": DR_GRPO,
    "rloo": RLOO,
    "reinforce++": REINFORCE_PLUS_PLUS,
    "dapo": DAPO,
    "gspo": GSPO,
}
