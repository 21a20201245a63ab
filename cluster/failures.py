"""Kinds of failure, and waits that end."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError


class UserError(Exception):
    """Something the user can mend. Shown as one line; the command ends with exit code 2."""


class StageError(Exception):
    """A stage could not finish for a reason that is not the user's input. Shown as one line with exit code 1."""


class DeadlineError(StageError):
    """A wait reached its deadline. The message names what was waited for."""


class EngineError(StageError):
    """A rollout, reward or learner actor died or answered nonsense; the work it held has been handed back."""


def wait_for(refs: Any, seconds: float, what: str) -> Any:
    """`ray.get` with a deadline.

    Args:
        refs: an object reference or a sequence of them.
        seconds: the deadline.
        what: what is waited for, in words, for the error.

    Raises:
        DeadlineError: nothing came within `seconds`.
    """
    many = isinstance(refs, Sequence)
    try:
        return ray.get(list(refs) if many else refs, timeout=seconds)
    except GetTimeoutError as error:
        raise DeadlineError(f"waited {seconds:.0f} s for {what}; see the Ray logs of this session") from error
