"""One vLLM engine for several calls at a time: what one of them adds is decoded together with what others are at."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Value = TypeVar("Value")


class SharedEngine:
    """Answers requests of several threads. Whatever concerns the engine is done in one thread of its own.

    On a GPU, vLLM computes in a stream of the thread that steps it, and a step may end before what it began: those of
    two threads could overtake each other. On CPUs, each thread would bring its own OpenMP threads to the same cores.

    Args:
        make: makes vLLM's `LLM`.

    Attributes:
        llm: what it made, for `run`.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._names = itertools.count()
        self._asked: dict[str, Future[Any]] = {}
        self.llm = self.run(make)

    def run(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """Does something with the engine between two steps of it."""
        return self._thread.submit(work, *arguments).result()

    def answers(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """The finished output of every request.

        Raises:
            ValueError: the engine refuses one; none has been begun then.
        """
        return [asked.result() for asked in self.run(self._add, requests, params)]

    def _add(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Future[Any]]:
        names: list[str] = []
        try:
            for request, param in zip(requests, params, strict=True):
                names.append(str(next(self._names)))
                self.llm.llm_engine.add_request(names[-1], request, param)
        except ValueError:
            self.llm.llm_engine.abort_request(names)
            raise
        if names and not self._asked:
            self._step_next()
        added: dict[str, Future[Any]] = {name: Future() for name in names}
        self._asked |= added
        return list(added.values())

    def _step_next(self) -> None:
        # Behind what others have to do with the engine.
        self._thread.submit(self._step).add_done_callback(self._stepped)

    def _step(self) -> None:
        for output in self.llm.llm_engine.step():
            if output.finished:
                self._asked.pop(output.request_id).set_result(output)

    def _stepped(self, step: Future[None]) -> None:
        if error := step.exception():
            for asked in self._asked.values():
                asked.set_exception(error)
            self._asked.clear()
        elif self._asked:
            self._step_next()
