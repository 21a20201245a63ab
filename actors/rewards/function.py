"""Rewards that can be verified: Python functions of a question and an answer."""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from actors.rewards.pool import Scores
from actors.types import Prompt, RewardInput, Sample
from cluster.errors import StageError, UserError


class FunctionReward:
    """Calls a function for every answer: a reward that can be verified.

    Args:
        name: module:function.
    """

    def __init__(self, name: str) -> None:
        self.name, self.function = name, load_function(name)

    def score(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], questions: Sequence[RewardInput]
    ) -> Scores:
        """Rewards of the samples of each prompt.

        Args:
            questions: what the function sees of each prompt.

        Raises:
            StageError: the function raised, or gave something else than a finite number; function and prompt are named.
        """
        return [
            [self._one(prompt.id, question, sample.text) for sample in group]
            for prompt, group, question in zip(prompts, groups, questions, strict=True)
        ]

    def _one(self, prompt_id: str, question: RewardInput, answer: str) -> float:
        where = f"for prompt {prompt_id!r} and answer {answer!r}"
        try:
            reward = self.function(question, answer)
        except Exception as error:
            raise StageError(f"reward function {self.name} raised {type(error).__name__} {where}: {error}") from error
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise StageError(f"reward function {self.name} gave {reward!r} {where}: it must be a finite number")
        return float(reward)


def load_function(name: str, what: str = "reward function") -> Callable[..., Any]:
    """The function that a recipe names as module:function; `what` it is to be is for the message.

    Raises:
        UserError: there is no such module or function, or the module cannot be imported.
    """
    module, _, function = name.partition(":")
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
