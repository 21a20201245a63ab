"""Rewards that can be verified: Python functions of a question and an answer."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.reward import Scores
from actors.sample import Prompt, Sample
from cluster.failures import StageError, UserError


@dataclass(frozen=True)
class Question:
    """What a reward function sees of a prompt.

    Attributes:
        messages: the conversation up to the answer.
        metadata: what else is known of the prompt, such as the right answer.
    """

    messages: list[dict[str, str]]
    metadata: Mapping[str, str]


def shown(question: Question) -> str:
    """As people read it: what the user said, or the whole conversation where it is longer."""
    if len(question.messages) == 1:
        return question.messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in question.messages)


class FunctionReward:
    """Calls a function for every answer: a reward that can be verified.

    Args:
        name: module:function.
        questions: what the function sees of each prompt, by the prompt's id.
    """

    def __init__(self, name: str, questions: Mapping[str, Question]) -> None:
        self.name, self.function, self.questions = name, load_function(name), questions

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Scores:
        """Rewards of the samples of each prompt.

        Raises:
            StageError: the function raised, or gave something else than a finite number; function and prompt are named.
        """
        return [
            [self._one(prompt.id, sample.text) for sample in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def _one(self, prompt_id: str, answer: str) -> float:
        where = f"for prompt {prompt_id!r} and answer {answer!r}"
        try:
            reward = self.function(self.questions[prompt_id], answer)
        except Exception as error:
            raise StageError(f"reward function {self.name} raised {type(error).__name__} {where}: {error}") from error
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise StageError(f"reward function {self.name} gave {reward!r} {where}: it must be a finite number")
        return float(reward)


def load_function(name: str, what: str = "reward function") -> Callable[..., Any]:
    """The function that a recipe names as module:function; `what` it is to be is for the message.

    Raises:
        UserError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} {name}: {error}; name it module:function, on Python's path") from error
    if not callable(found):
        raise UserError(f"{what} {name} is a {type(found).__name__}, not a function")
    return found
