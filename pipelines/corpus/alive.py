"""Lets a task say that it makes progress, so that a part that takes longer than the deadline is not given up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

# A file system that machines share is asked no more often.
_EVERY_SECONDS = 0.5


@dataclass
class _Sign:
    file: Path
    next_at: float = 0.0


_SIGN: ContextVar[_Sign | None] = ContextVar("sign of life", default=None)


@contextmanager
def signs_of_life(file: Path) -> Iterator[None]:
    """Has `progress` touch a file within the block, which then is removed."""
    token = _SIGN.set(_Sign(file))
    try:
        yield
    finally:
        _SIGN.reset(token)
        file.unlink(missing_ok=True)


def progress() -> None:
    """Says that the task has gone on, after a batch or a record; does nothing outside of a task."""
    sign = _SIGN.get()
    if sign is not None and (now := time.monotonic()) >= sign.next_at:
        sign.file.touch()
        sign.next_at = now + _EVERY_SECONDS


def last_sign(file: Path) -> int:
    """Returns the time of a file's last change in ns, to be compared with an earlier one only; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
