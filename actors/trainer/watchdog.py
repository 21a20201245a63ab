"""A deadline for work that nobody outside can stop: where it does not come to an end, its process does."""

import faulthandler
import os
from collections.abc import Callable
from threading import Timer
from types import TracebackType

from cluster.errors import DeadlineError


class Deadline:
    """Ends this process where what it waits for does not come in time.

    The thread that waits cannot be stopped: it may be in a library, with a file whose mount no longer answers or in a
    collective operation with a worker that is gone. Where each thread is goes to the process's log.

    Args:
        seconds: the longest wait.
        say: is given the error before the process ends.
    """

    def __init__(self, seconds: float, say: Callable[[DeadlineError], None]) -> None:
        self.seconds, self.say = seconds, say
        self._timer: Timer | None = None

    def __enter__(self) -> "Deadline":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer:
            self._timer.cancel()

    def begin(self, what: str) -> None:
        """From now on this is waited for, and what was before has come."""
        if self._timer:
            self._timer.cancel()
        self._timer = Timer(self.seconds, self._end, [what])
        self._timer.daemon = True
        self._timer.start()

    def _end(self, what: str) -> None:
        faulthandler.dump_traceback()
        try:
            where = "the Ray logs of this session say where"
            self.say(DeadlineError(f"waited {self.seconds:.0f} s for {what} (cluster.deadline_minutes); {where}"))
        finally:
            os._exit(1)
