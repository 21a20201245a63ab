"""Rewards by Python functions of a prompt and an answer, for tasks whose answers can be verified."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from actors.rewards.pool import Scores
from actors.types import Prompt, RewardInput, Sample
from cluster.errors import StageError, UserError

# Modules that recipes of the version before may name, by their former names. Can go with the next version.
MOVED = {"actors.checks": "actors.rewards.builtin"}


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


def load_function(name: str, what: str = "reward function") -> Callable[..., Any]:
    """Imports the function that a recipe names.

    Args:
        name: module:function, the module on Python's path.
        what: the function's purpose, for messages.

    Raises:
        UserError: there is no such module or function, or the module cannot be imported.
    """
    module, _, function = name.partition(":")
    if module in MOVED:
        print(f"{what} {name} is now {MOVED[module]}:{function}: name it so in the recipe", file=sys.stderr)
        module = MOVED[module]
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        how = "name it module:function, in a folder of PYTHONPATH"
        raise UserError(f"{what} {name}: {error}; {how}") from error
    # The module is the user's own, and may fail in any way.
    except Exception as error:
        raise UserError(f"{what} {name}: importing {module} raised {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"{what} {name} is a {type(found).__name__}, not a function")
    return found
