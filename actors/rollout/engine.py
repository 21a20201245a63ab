"""Shares one vLLM engine among threads: requests of a later call are decoded together with those of earlier calls."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

# Sequences decoded at once, beyond which a step of an engine costs more than it gains on the CPUs measured. On a GPU,
# vLLM chooses by the card, up to 1,024; an actor is asked for twice this.
CPU_SEQUENCES, GPU_SEQUENCES = 128, 512

Value = TypeVar("Value")


class SharedEngine:
    """Answers requests of several threads, but touches the engine only in one thread of its own.

    On a GPU, vLLM computes in a stream of the thread that steps it, and a step may end before the work that it began:
    that of two threads could overtake each other. On CPUs, each thread would bring its own OpenMP threads to the same
    cores.

    Args:
        make: makes vLLM's `LLM`.

    Attributes:
        llm: vLLM's `LLM`, to be used in `run` alone.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._names = itertools.count()
        self._outputs: dict[str, Future[Any]] = {}
        self._steps, self._loading = 0, False
        self.llm = self.run(make)

    def progress(self) -> int:
        """Returns a number that changes as long as the engine is well: it has done a step, or nothing is asked of it,
        or it loads weights."""
        if self._loading or not self._outputs:
            self._steps += 1
        return self._steps

    def load(self, function: Callable[[], None]) -> None:
        """Calls a function that loads weights in the engine's thread, and waits for it."""

        def call() -> None:
            self._loading = True
            try:
                function()
            finally:
                self._loading = False

        self.run(call)

    def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Calls a function in the engine's thread, between two steps, and returns its result."""
        return self._thread.submit(function, *arguments).result()

    def begin(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Future[Any]]:
        """Begins requests together and returns a future of vLLM's finished output of each.

        Args:
            requests: prompts as vLLM's `add_request` takes them.
            params: the sampling parameters of each.

        Raises:
            ValueError: the engine refuses one; none has been begun then.
        """
        return self.run(self._add, requests, params)

    def generate(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """Returns vLLM's finished output of every request. Takes and raises what `begin` does."""
        return [output.result() for output in self.begin(requests, params)]

    async def generate_one(self, request: Any, params: Any) -> Any:
        """Returns vLLM's finished output of a request, without keeping the caller's event loop waiting.

        Raises:
            ValueError: the engine refuses it.
        """
        added = self._thread.submit(self._add, [request], [params])
        (output,) = await asyncio.wrap_future(added)
        return await asyncio.wrap_future(output)

    def _add(self, requests: Sequence[Any], params: Sequence[Any]) -> list[Future[Any]]:
        names: list[str] = []
        try:
            for request, param in zip(requests, params, strict=True):
                names.append(str(next(self._names)))
                self.llm.llm_engine.add_request(names[-1], request, param)
        except ValueError:
            self.llm.llm_engine.abort_request(names)
            raise
        if names and not self._outputs:
            self._queue_step()
        added: dict[str, Future[Any]] = {name: Future() for name in names}
        self._outputs |= added
        return list(added.values())

    def _queue_step(self) -> None:
        # After all other work that waits for the engine's thread.
        self._thread.submit(self._step).add_done_callback(self._on_step)

    def _step(self) -> None:
        outputs = self.llm.llm_engine.step()
        self._steps += 1
        for output in outputs:
            if output.finished:
                waiting = self._outputs.pop(output.request_id)
                # The caller that waits may have given up.
                if waiting.set_running_or_notify_cancel():
                    waiting.set_result(output)

    def _on_step(self, step: Future[None]) -> None:
        if error := step.exception():
            outputs, self._outputs = self._outputs, {}
            for waiting in outputs.values():
                if waiting.set_running_or_notify_cancel():
                    waiting.set_exception(error)
        elif self._outputs:
            self._queue_step()
