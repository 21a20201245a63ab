"""The kinds of failure, their recovery from the exceptions of Ray, and waits with a deadline."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.compat import is_data_stall, is_from_ray, is_node_timeout, is_remote_error, wrapped_errors

# The kernel's text for ENOSPC. Libraries quote it in exceptions of their own, such as safetensors' SafetensorError.
FULL_DISK = os.strerror(errno.ENOSPC)
# Error numbers of operations that the user of this process may not do.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Error numbers of paths that cannot exist, or are no file or folder as the operation needs.
IMPOSSIBLE_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
# Characters of such a path that a message shows.
SHOWN_PATH = 200
# Seconds between two calls of `meanwhile` in a wait.
POLL_SECONDS = 0.1


class UserError(Exception):
    """A mistake that the user can correct. It is shown as one line, and the command ends with exit code 2."""


class StageError(Exception):
    """A failure of a stage for another reason than the user's input. It is shown as one line, with exit code 1."""


class DeadlineError(StageError):
    """A wait that reached its deadline. The message names the event that did not come."""


class StorageError(StageError):
    """A storage that does not answer, or whose answer breaks off. The data may be intact: the same command reads it
    again."""


class EngineError(StageError):
    """The death, or an invalid result, of a rollout, reward or learner actor, whose work has been requeued."""


def wait_for(refs: Any, seconds: float, what: str, meanwhile: Callable[[], None] | None = None) -> Any:
    """Gets results of Ray tasks or actor calls, with a deadline.

    Args:
        refs: an object reference or a sequence of them.
        seconds: the longest wait.
        what: a description of the results, for error messages.
        meanwhile: a function to call every `POLL_SECONDS` until the results are there.

    Raises:
        DeadlineError: there is no result within `seconds`.
        EngineError: the actor of a call has died.
        UserError, StageError: a task, or the start of an actor, failed with it.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    refs, end = list(refs) if isinstance(refs, Sequence) else refs, time.monotonic() + seconds
    try:
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                return ray.get(refs, timeout=min(left, POLL_SECONDS) if meanwhile else left)
            except GetTimeoutError as error:
                if not meanwhile or left <= POLL_SECONDS:
                    late = f"waited {seconds:.0f} s for {what}; see the Ray logs of this session"
                    raise DeadlineError(late) from error
                meanwhile()
    except RayActorError as error:
        died = EngineError(f"an actor died before it gave {what}; the same command goes on from the last checkpoint")
        raise known_failure(error) or died from error


def known_failure(error: BaseException) -> UserError | StageError | None:
    """Finds the `UserError` or `StageError` behind an exception, also one that Ray carried from another process.

    Returns:
        the failure, or None if there is none: the exception is a bug.
    """
    for found in _causes(error):
        if isinstance(found, UserError | StageError) and not is_remote_error(found):
            return found
        if is_data_stall(found):
            return DeadlineError("waited for Ray Data, which made no progress; are all CPUs taken by other actors?")
        if is_node_timeout(found):
            return DeadlineError(
                "Ray's processes did not start within 30 s: this machine is busy, or short of memory; the same command "
                "tries again"
            )
        if isinstance(found, OSError) and found.errno in NOT_ALLOWED and found.filename is not None:
            return StageError(f"{found.filename}: {found.strerror}: change its permissions, or name another place")
        if isinstance(found, OSError) and found.errno in IMPOSSIBLE_PATH and found.filename is not None:
            path = str(found.filename)
            shown = path if len(path) <= SHOWN_PATH else f"{path[:SHOWN_PATH]}…"
            return UserError(f"{shown}: {found.strerror}: name another place")
        if FULL_DISK in str(found):
            return StageError(f"{_last_line_with(FULL_DISK, str(found))}: free some, and the same command goes on")
    return _named_in_traceback(str(error)) if is_from_ray(error) else None


def first_line(error: object) -> str:
    """Returns the first line of an error's message, or the name of its class if the message is empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _last_line_with(words: str, text: str) -> str:
    """Finds the last line that has the words: in a traceback the lines above it are code."""
    return [line.strip() for line in text.splitlines() if words in line][-1]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the exception and those behind it: wrapped by Ray, or by `raise … from`."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += wrapped_errors(current)
        if current.__cause__ is not None:
            waiting.append(current.__cause__)


def _named_in_traceback(text: str) -> UserError | StageError | None:
    """Rebuilds the failure that a traceback names: Ray Data, and an actor that dies as it starts, leave only text."""
    names = {kind.__name__: kind for kind in (UserError, StageError, DeadlineError, StorageError, EngineError)}
    found = re.findall(rf"^{re.escape(__name__)}\.({'|'.join(names)}): (.+)$", text, flags=re.MULTILINE)
    return names[found[-1][0]](found[-1][1]) if found else None
