"""A lock between a thread that takes it again and again and one that takes it seldom."""

import threading
from types import TracebackType


class FairLock:
    """Whoever waits gets it next. Python's own goes most often to the thread that has just let go of it."""

    def __init__(self) -> None:
        self._next, self._held = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        # Who waits for the lock holds `_next`: nobody overtakes.
        with self._next:
            self._held.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.release()
