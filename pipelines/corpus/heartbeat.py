"""Heartbeats of tasks: a task that makes progress is not given up, even if one part takes longer than the deadline."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

# Seconds between two heartbeats: each is a request to a file system that machines may share.
_EVERY_SECONDS = 0.5


@dataclass
class _Heartbeat:
    file: Path
    next_at: float = 0.0


_HEARTBEAT: ContextVar[_Heartbeat | None] = ContextVar("heartbeat", default=None)


@contextmanager
def heartbeats(file: Path) -> Iterator[None]:
    """Makes `progress` touch a file within the block, at whose end the file is removed."""
    token = _HEARTBEAT.set(_Heartbeat(file))
    try:
        yield
    finally:
        _HEARTBEAT.reset(token)
        file.unlink(missing_ok=True)


def progress() -> None:
    """Reports that a task has made progress, after a batch or a record; does nothing outside of a task."""
    beat = _HEARTBEAT.get()
    if beat is not None and (now := time.monotonic()) >= beat.next_at:
        beat.file.touch()
        beat.next_at = now + _EVERY_SECONDS


def last_heartbeat(file: Path) -> int:
    """Returns the time of a file's last change in ns, to be compared with an earlier one only; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
