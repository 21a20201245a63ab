"""One vLLM engine for several calls at a time: what one of them adds is decoded together with what others are at."""

import itertools
import threading
from collections.abc import Sequence
from typing import Any

from actors.fair_lock import FairLock


class SharedEngine:
    """Answers requests of several threads.

    One of those that wait steps the engine, for all of them, until it has its own answers; then another does. Threads
    that step in turn would each bring their own pool of OpenMP threads to the same cores.

    Args:
        engine: vLLM's `LLMEngine`.

    Attributes:
        turn: to be held by whoever else touches the engine; between two steps it is free.
    """

    def __init__(self, engine: Any) -> None:
        self.turn = FairLock()
        self._engine = engine
        self._names = itertools.count()
        self._changed = threading.Condition()
        self._stepping = False
        self._done: dict[str, Any] = {}

    def answers(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """The finished output of every request.

        Raises:
            ValueError: the engine refuses one; none has been begun then.
        """
        names = self._add(requests, params)
        wanted = set(names)
        while not self._all_done(wanted):
            try:
                self._step_until(wanted)
            finally:
                self._stop_stepping()
        return [self._done.pop(name) for name in names]

    def _add(self, requests: Sequence[Any], params: Sequence[Any]) -> list[str]:
        names: list[str] = []
        with self.turn:
            try:
                for request, param in zip(requests, params, strict=True):
                    names.append(str(next(self._names)))
                    self._engine.add_request(names[-1], request, param)
            except ValueError:
                self._engine.abort_request(names)
                raise
        return names

    def _all_done(self, names: set[str]) -> bool:
        """Waits while another thread steps; if they are not done then, it is this one's to step."""
        with self._changed:
            self._changed.wait_for(lambda: not self._stepping or self._done.keys() >= names)
            if self._done.keys() >= names:
                return True
            self._stepping = True
            return False

    def _step_until(self, names: set[str]) -> None:
        while not self._done.keys() >= names:
            with self.turn:
                finished = {output.request_id: output for output in self._engine.step() if output.finished}
            if finished:
                with self._changed:
                    self._done |= finished
                    self._changed.notify_all()

    def _stop_stepping(self) -> None:
        with self._changed:
            self._stepping = False
            self._changed.notify_all()
