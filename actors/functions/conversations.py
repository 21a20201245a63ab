"""Handles calls of environments: objects of a class, one for each conversation, or a function without state.

A call is `{"conversation", "trajectory"}` after each answer, and `{"conversation"}` at the end; the value is the reply.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from actors.functions.values import ValueRefusedError, as_number, quoted
from actors.types import Answer, Reply, RewardInput, Trajectory
from cluster.recipe.functions import is_coroutine_function

# The purpose, as an argument of the process, of a function that is an environment.
ENVIRONMENT = "environment"


def is_environment(found: Any) -> bool:
    """Tells whether a recipe names a class of `Environment`s, and not a function of a question and answers."""
    return inspect.isclass(found) and hasattr(found, "step")


def environment_handler(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """Returns a handler of calls of an environment: a coroutine function, unless the environment is a plain one."""
    if is_environment(function):
        return _Objects(function).reply

    def plain(given: dict[str, Any]) -> dict[str, Any] | None:
        return _row(function(*_arguments(given))) if "trajectory" in given else None

    async def coroutine(given: dict[str, Any]) -> dict[str, Any] | None:
        return _row(await function(*_arguments(given))) if "trajectory" in given else None

    return coroutine if is_coroutine_function(function) else plain


class _Objects:
    """The open conversations of a class of environments."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        self._kind = kind
        self._open: dict[str, Any] = {}

    async def reply(self, given: dict[str, Any]) -> dict[str, Any] | None:
        name = given["conversation"]
        if "trajectory" not in given:
            self._open.pop(name, None)
            return None
        trajectory = _trajectory(given["trajectory"])
        if name not in self._open:
            if len(trajectory.answers) > 1:
                raise ValueRefusedError("lost the conversation's state with its process")
            environment = self._kind()
            await environment.reset(trajectory.question)
            self._open[name] = environment
        return _row(await self._open[name].step(trajectory))


def _trajectory(row: dict[str, Any]) -> Trajectory:
    question = RewardInput(row["question"]["messages"], row["question"]["metadata"])
    answers = [Answer(**answer) for answer in row["answers"]]
    return Trajectory(question, row["messages"], answers, row["token_ids"], row["loss_mask"])


def _arguments(given: dict[str, Any]) -> tuple[RewardInput, list[str]]:
    """Returns the arguments of an environment that is a function."""
    trajectory = _trajectory(given["trajectory"])
    return trajectory.question, [answer.text for answer in trajectory.answers]


def _row(value: Any) -> dict[str, Any]:
    """Checks the value that an environment returned, a `Reply`, a user's text, a message, or None to end the
    conversation, and makes it a row of JSON.

    Raises:
        ValueRefusedError: it is none of these.
    """
    if isinstance(value, str):
        value = Reply([{"role": "user", "content": value}])
    elif isinstance(value, dict):
        value = Reply([value])
    elif value is None:
        value = Reply()
    whole = isinstance(value, Reply) and isinstance(value.messages, list)
    if not whole or not all(map(_is_message, value.messages)):
        raise ValueRefusedError(f"gave {quoted(value)}: it must be a text, a message, a Reply or None")
    reward = None if value.reward is None else as_number(value.reward)
    return asdict(Reply(value.messages, reward))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))
