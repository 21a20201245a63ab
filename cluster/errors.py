"""Kinds of failure, what to tell people about them, and waits that end."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What the kernel says (ENOSPC), in whichever library's exception: safetensors has one of its own.
FULL_DISK = os.strerror(errno.ENOSPC)
# Seconds after which a wait looks to what is to be done meanwhile.
PERIOD = 0.1


class UserError(Exception):
    """Something the user can mend. Shown as one line; the command ends with exit code 2."""


class StageError(Exception):
    """A stage could not finish for a reason that is not the user's input. Shown as one line with exit code 1."""


class DeadlineError(StageError):
    """A wait reached its deadline. The message names what was waited for."""


class EngineError(StageError):
    """A rollout, reward or learner actor died or answered nonsense; the work it held has been handed back."""


def wait_for(refs: Any, seconds: float, what: str, meanwhile: Callable[[], None] | None = None) -> Any:
    """`ray.get` with a deadline.

    Args:
        refs: an object reference or a sequence of them.
        seconds: the deadline.
        what: what is waited for, in words, for the error.
        meanwhile: called again and again until it is there.

    Raises:
        DeadlineError: nothing came within `seconds`.
        EngineError: the actor that was to answer has died.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    refs, end = list(refs) if isinstance(refs, Sequence) else refs, time.monotonic() + seconds
    try:
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                return ray.get(refs, timeout=min(left, PERIOD) if meanwhile else left)
            except GetTimeoutError as error:
                if not meanwhile or left <= PERIOD:
                    late = f"waited {seconds:.0f} s for {what}; see the Ray logs of this session"
                    raise DeadlineError(late) from error
                meanwhile()
    except RayActorError as error:
        died = EngineError(f"an actor died before it gave {what}; the same command goes on from the last checkpoint")
        raise known_failure(error) or died from error


def known_failure(error: BaseException) -> UserError | StageError | None:
    """The `UserError` or `StageError` behind an exception, also when Ray carried it from another process; else None."""
    for found in _behind(error):
        # Ray raises a class that is both RayTaskError and the cause's: its text is a traceback.
        if isinstance(found, UserError | StageError) and not hasattr(found, "cause"):
            return found
        if type(found).__name__ == "ExecutionTimeoutError":
            return DeadlineError("waited for Ray Data, which made no progress; are all CPUs taken by other actors?")
        if FULL_DISK in str(found):
            return StageError(f"{_line_with(FULL_DISK, str(found))}: free some, and the same command goes on")
    return _written_in(str(error)) if type(error).__module__.startswith("ray") else None


def first_line(error: object) -> str:
    """The first line of what an error says, or the name of its kind where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _line_with(words: str, text: str) -> str:
    """The last line that says so: above it is where it happened."""
    return [line.strip() for line in text.splitlines() if words in line][-1]


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it wraps: by Ray tasks (`cause`), by Ray Train, or by `raise … from`."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", {})
        wrapped = [getattr(current, "cause", None), getattr(current, "controller_failure", None), *failures.values()]
        waiting += [item for item in (*wrapped, current.__cause__) if isinstance(item, BaseException)]


def _written_in(text: str) -> UserError | StageError | None:
    """The failure that a traceback names: all that is left of it after Ray Data, or of an actor that died starting."""
    names = {kind.__name__: kind for kind in (UserError, StageError, DeadlineError, EngineError)}
    found = re.findall(rf"^{re.escape(__name__)}\.({'|'.join(names)}): (.+)$", text, flags=re.MULTILINE)
    return names[found[-1][0]](found[-1][1]) if found else None
