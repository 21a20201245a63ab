"""A watchdog for work that nothing outside the process can stop: it ends the process."""

import faulthandler
import os
from collections.abc import Callable
from threading import Timer
from types import TracebackType

from cluster.errors import DeadlineError


class Watchdog:
    """Ends this process when a wait takes too long.

    The thread that waits cannot be stopped: it may be in a library, with a file whose mount no longer answers or in a
    collective operation with a worker that is gone. A traceback of every thread goes to the process's log.

    Args:
        seconds: the longest wait.
        report: is given the error before the process ends.
    """

    def __init__(self, seconds: float, report: Callable[[DeadlineError], None]) -> None:
        self.seconds, self.report = seconds, report
        self._timer: Timer | None = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer:
            self._timer.cancel()

    def begin(self, what: str) -> None:
        """Starts the time anew, for a wait for `what`; the wait before is over."""
        if self._timer:
            self._timer.cancel()
        self._timer = Timer(self.seconds, self._end, [what])
        self._timer.daemon = True
        self._timer.start()

    def _end(self, what: str) -> None:
        faulthandler.dump_traceback()
        try:
            where = "the Ray logs of this session say where"
            self.report(DeadlineError(f"waited {self.seconds:.0f} s for {what} (cluster.deadline_minutes); {where}"))
        finally:
            os._exit(1)
