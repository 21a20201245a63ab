"""Rewards by Python functions of a prompt and an answer, for tasks whose answers can be verified."""

import math
from collections.abc import Sequence

from actors.rewards.pool import Scores
from actors.types import Prompt, RewardInput, Sample
from cluster.errors import StageError
from cluster.recipe.functions import load_function


class FunctionReward:
    """Calls a function for every answer.

    Args:
        name: module:function; it takes a `RewardInput` and the answer's text, and returns a number.

    Raises:
        UserError: the function cannot be imported.
    """

    def __init__(self, name: str) -> None:
        self.name, self.function = name, load_function(name)

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], inputs: Sequence[RewardInput]
    ) -> Scores:
        """Returns the rewards of the samples of each prompt.

        Args:
            prompts: P prompts.
            groups: the samples of each.
            inputs: what the function sees of each.

        Raises:
            StageError: the function raised, or returned something else than a finite number; function and prompt are
                named.
        """
        return [
            [self._reward(prompt, own, sample.text) for sample in group]
            for prompt, group, own in zip(prompts, groups, inputs, strict=True)
        ]

    def _reward(self, prompt: Prompt, own: RewardInput, answer: str) -> float:
        where = f"for prompt {prompt.name!r} and answer {answer!r}"
        try:
            reward = self.function(own, answer)
        except Exception as error:
            raise StageError(f"reward function {self.name} raised {type(error).__name__} {where}: {error}") from error
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise StageError(f"reward function {self.name} gave {reward!r} {where}: it must be a finite number")
        return float(reward)
