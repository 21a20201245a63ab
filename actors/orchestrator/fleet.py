"""Runs the rollout actors of a run as Ray actors.

A thread passes the actors' reports to the coordinator, so that an actor that joins or replaces another starts to work
even while no caller waits for samples.
"""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from actors.model.lora import is_adapter, merge_into
from actors.orchestrator.coordination.coordinator import Coordinator
from actors.orchestrator.coordination.members import MAX_OPEN_REQUESTS
from actors.orchestrator.coordination.protocols import Callback, Report
from actors.orchestrator.coordination.work_queue import GenerateRequest
from actors.rollout.actor import EngineSettings, RolloutActor, engine_env_vars
from actors.rollout.environment import MultiTurnSettings
from actors.rollout.weights import Weights, digest, publish, stored
from actors.types import Prompt, Sampling
from cluster.errors import DeadlineError, EngineError, UserError
from cluster.recipe.base import Precision
from cluster.runtime.placement import wait_for_room
from cluster.runtime.plan import Allocation

# Seconds between two looks for late actors while no actor reports and no caller waits.
PERIOD = 1.0
# The default of `stall`, for fleets outside of RLHF, which has a recipe key for it. A step of an engine takes less than
# a second, and the first, which reads prompts, a few.
STALL_SECONDS = 30.0
# The concurrency group of an actor's calls of `generate`, so that weight transfers need not wait for them.
GENERATING = "generating"
# The longest wait, in seconds, for the calls that a closing fleet cancels.
END_SECONDS = 5.0

# Hands one answer or report of an actor to the coordinator.
Delivery = Callable[[], None]


class Fleet(Coordinator):
    """A coordinator of Ray actors; any number of threads may use it. Leaving it as a context manager ends the actors.

    Args:
        model: a Hugging Face model directory with its tokenizer; its weights are version 0.
        actors: the number of actors to keep.
        allocation: the resources of one actor.
        context: the most tokens of a prompt and its completion.
        seed: of draws that have no seed of their own.
        deadline: the most seconds that a start or a weight transfer may take.
        stall: the most seconds in which an engine that has requests may draw no token.
        multi_turn: continues completions as conversations of several turns.
        swap_in_flight: whether actors take new weights in the midst of completions.

    Raises:
        UserError: there is no model in the directory, or its heads cannot be divided among an engine's workers.
    """

    def __init__(
        self,
        model: Path,
        actors: int,
        allocation: Allocation,
        context: int,
        seed: int,
        deadline: float,
        stall: float = STALL_SECONDS,
        multi_turn: MultiTurnSettings | None = None,
        swap_in_flight: bool = False,
    ) -> None:
        try:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{model} holds no model: its config.json cannot be read") from error
        _check_divisible(config, allocation.workers)
        self._tied = bool(config.get("tie_word_embeddings", False))
        self._engine = EngineSettings(model, context, seed, allocation, multi_turn)
        options: dict[str, Any] = {
            "num_cpus": allocation.cpus,
            "num_gpus": allocation.gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": engine_env_vars(allocation)},
            "concurrency_groups": {GENERATING: MAX_OPEN_REQUESTS},
        }
        self._actor = ray.remote(**options)(RolloutActor)
        self._streams = asyncio.new_event_loop()
        self._stream_thread = threading.Thread(target=self._streams.run_forever, name="fleet streams", daemon=True)
        self._reports: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._changed = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._pass_reports, name="fleet", daemon=True)
        super().__init__(
            self._launch_actor,
            _Clock(self._changed),
            actors,
            deadline,
            stall,
            self._engine.sequences,
            swap_in_flight,
            lock=self._changed,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def precision(self) -> Precision:
        """The element type that the engines compute in."""
        return self._engine.precision

    def start(self) -> None:
        """Starts the actors as `Coordinator.start` does, once one has room; if that fails, ends them.

        Raises:
            DeadlineError: not one actor has room within the deadline, or is ready.
            EngineError: as `Coordinator.start`.
        """
        try:
            wait_for_room({"rollout actor": (self._engine.allocation, 1)}, self._deadline)
            self._thread.start()
            self._stream_thread.start()
            super().start()
        except (EngineError, DeadlineError):
            self.close()
            raise

    def close(self) -> None:
        """Ends all actors as `Coordinator.close` does, and the thread."""
        with self.lock:
            super().close()
            self._changed.notify_all()
        self._reports.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=self._deadline)
        if self._stream_thread.is_alive():
            asyncio.run_coroutine_threadsafe(_end_streams(), self._streams)
            self._stream_thread.join(timeout=self._deadline)
        if not self._stream_thread.is_alive():
            self._streams.close()

    def handles(self) -> list[Any]:
        """Returns the Ray handles of the actors that hold the current weights."""
        return [worker.handle for worker in self.ready() if isinstance(worker, _RayWorker)]

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Queues prompts as `Coordinator.submit` does.

        Raises:
            ValueError: a prompt is in work, or leaves no room for a completion.
        """
        for prompt in prompts:
            if len(prompt.token_ids) >= self._engine.context:
                raise ValueError(
                    f"prompt {prompt.name} has {len(prompt.token_ids)} tokens; the context of {self._engine.context} "
                    "leaves no room for an answer"
                )
        super().submit(prompts, sampling)

    def load(self, version: int, state: dict[str, Tensor]) -> None:
        """Publishes weights as a version and waits until all actors have them. Raises as `sync` does.

        Args:
            state: Hugging Face names and tensors, or adapters to be merged into the weights of version 0.
        """
        self.sync(publish(version, self._without_tied_head(state), self._engine.dtype))

    def digests(self, state: dict[str, Tensor]) -> dict[str, int]:
        """Returns the digests that `RolloutActor.checksums` gives when an engine computes with weights or adapters."""
        adapters = any(map(is_adapter, state))
        base, whole = stored(self._engine.model), self._without_tied_head(state)
        merged = merge_into(base, state, self._engine.dtype) if adapters else whole.items()
        return digest((name, tensor.to(self._engine.dtype)) for name, tensor in merged)

    def _without_tied_head(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if not (self._tied and name == "lm_head.weight")}

    def _launch_actor(self, number: int) -> "_RayWorker":
        return _RayWorker(self._actor.remote(self._engine, number), self._reports.put, self._streams)

    def _pass_reports(self) -> None:
        try:
            while (report := self._next_report()) is not None:
                with self._changed:
                    report()
                    self.expire()
                    self._changed.notify_all()
        finally:
            with self._changed:
                self.fail(EngineError("the rollout fleet has been closed"))
                self._changed.notify_all()

    def _next_report(self) -> Delivery | None:
        try:
            return self._reports.get(timeout=PERIOD)
        except queue.Empty:
            return lambda: None


def _check_divisible(config: dict[str, Any], workers: int) -> None:
    """Raises a UserError unless vLLM can divide the heads of a model among the workers of an engine."""
    heads = int(config.get("num_attention_heads") or workers)
    shared = int(config.get("num_key_value_heads") or heads)
    if heads % workers or (shared % workers and workers % shared):
        raise UserError(
            f"rlhf.fleet.tensor_parallel={workers} does not divide the model's {heads} attention heads and {shared} "
            "heads of keys and values"
        )


async def _end_streams() -> None:
    """Cancels the tasks of the event loop, and stops it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=END_SECONDS)
    asyncio.get_running_loop().stop()


class _Clock:
    """The machine's clock. Sleeping releases the fleet's lock, and ends when the fleet has changed."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        self._changed.wait(seconds)


class _RayWorker:
    """A `Worker` that is a Ray actor.

    Args:
        report: is given a function for each answer, for the fleet's thread to call.
        streams: the event loop that waits for samples.
    """

    def __init__(self, handle: Any, report: Callable[[Delivery], None], streams: asyncio.AbstractEventLoop) -> None:
        self.handle = handle
        self._generate = handle.generate.options(concurrency_group=GENERATING)
        self._report, self._streams = report, streams

    def start(self, callback: Callback) -> None:
        self._send(self.handle.ready.remote(), callback)

    def pull(self, weights: Weights, callback: Callback) -> None:
        # In a list, so that the reference is fetched by the engine and not before the call.
        ref = self.handle.pull_weights.remote(weights.version, [weights.ref], weights.dtype, weights.adapters)
        self._send(ref, callback)

    def generate(self, request: GenerateRequest, report: Report, callback: Callback) -> None:
        stream = self._generate.remote(list(request.prompts), request.sampling)
        asyncio.run_coroutine_threadsafe(self._follow(stream, report, callback), self._streams)

    def kill(self) -> None:
        ray.kill(self.handle)

    async def _follow(self, stream: Any, report: Report, callback: Callback) -> None:
        """Forwards the values that a call of `RolloutActor.generate` yields, until it ends or fails."""
        error: BaseException | None = None
        try:
            async for ref in stream:
                self._report(partial(report, await ref))
        # The coordinator must learn of any error, even that a sample cannot be read.
        except Exception as failure:  # noqa: BLE001
            error = _reduced(failure)
        self._report(partial(callback, None, error))

    def _send(self, ref: ray.ObjectRef, callback: Callback) -> None:
        def done(future: Future[Any]) -> None:
            # On a thread of Ray's, which must not be kept: the fleet's own thread does the rest.
            self._report(lambda: callback(*_outcome(future)))

        ref.future().add_done_callback(done)


def _outcome(future: Future[Any]) -> tuple[Any, BaseException | None]:
    """Returns the result or the error of a call."""
    error = future.exception()
    return (future.result(), None) if error is None else (None, _reduced(error))


def _reduced(error: BaseException) -> BaseException:
    """Returns one of the kinds of error that the coordinator tells apart."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if isinstance(error, RayTaskError) and isinstance(error.cause, ValueError):
        return ValueError(line)
    return EngineError(line)
