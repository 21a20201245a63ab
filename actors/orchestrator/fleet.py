"""The rollout actors of a run as Ray actors, and the thread that passes what they report to the coordinator.

A replacement or a joiner so comes to work without anybody waiting for it.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from actors.model.lora import added, is_adapter
from actors.orchestrator.accounting import Counters
from actors.orchestrator.coordinator import Coordinator
from actors.orchestrator.members import CHUNKS_AT_ONCE
from actors.orchestrator.protocols import Answer
from actors.orchestrator.work_queue import ActorState, GenerateRequest
from actors.rollout.actor import EngineSettings, RolloutActor, engine_env_vars
from actors.rollout.environment import MultiTurnSettings
from actors.rollout.weights import Weights, digest, publish, stored
from actors.types import Prompt, Sample, Sampling
from cluster.errors import DeadlineError, EngineError, UserError
from cluster.recipe.base import Precision
from cluster.runtime.plan import Allocation
from cluster.trace import ActorStatus, Span

# How often a late actor is looked for while nobody reports or waits.
PERIOD = 1.0
# The concurrency group of an actor's calls that draw: they leave it free to take weights meanwhile.
DRAWING = "drawing"

Report = Callable[[], None]


class Fleet:
    """Rollout actors that answer prompts between them. A context manager: leaving it ends the actors.

    Args:
        model: a Hugging Face model directory with its tokenizer; its weights are version 0.
        actors: how many actors to keep.
        share: what one actor may use.
        max_tokens_total: the most tokens of a prompt and its completion.
        seed: of draws that have no seed of their own.
        deadline: the most seconds that a start, a chunk of prompts or a weight transfer may take.
        multi_turn: what goes on with their answers, if anything does.
        swap_in_flight: actors take new weights in the midst of answers.

    Raises:
        UserError: there is no model in the directory.
    """

    def __init__(
        self,
        model: Path,
        actors: int,
        share: Allocation,
        max_tokens_total: int,
        seed: int,
        deadline: float,
        multi_turn: MultiTurnSettings | None = None,
        swap_in_flight: bool = False,
    ) -> None:
        try:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{model} holds no model: its config.json cannot be read") from error
        self._tied = bool(config.get("tie_word_embeddings", False))
        self._engine = EngineSettings(model, max_tokens_total, seed, share, multi_turn)
        options: dict[str, Any] = {
            "num_cpus": share.cpus,
            "num_gpus": share.gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": engine_env_vars(share)},
            "concurrency_groups": {DRAWING: CHUNKS_AT_ONCE},
        }
        self._actor = ray.remote(**options)(RolloutActor)
        self._deadline = deadline
        self._inbox: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._changed = threading.Condition(threading.RLock())
        self._coordinator = Coordinator(
            self._launch, _Clock(self._changed), actors, deadline, self._engine.sequences, swap_in_flight
        )
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)

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
        """As `Coordinator.start`."""
        self._thread.start()
        try:
            with self._changed:
                self._coordinator.start()
        except (EngineError, DeadlineError):
            self.close()
            raise

    def close(self) -> None:
        """Ends all actors; what they were at is dropped."""
        with self._changed:
            self._coordinator.close()
            self._changed.notify_all()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=self._deadline)

    def states(self) -> list[ActorState]:
        """The states of the actors that are not dead."""
        with self._changed:
            return self._coordinator.states()

    def handles(self) -> list[Any]:
        """The Ray handles of the actors that hold the current weights."""
        with self._changed:
            return [worker.handle for worker in self._coordinator.ready() if isinstance(worker, _RayWorker)]

    def counters(self) -> Counters:
        """What has been done so far."""
        with self._changed:
            return self._coordinator.counters()

    def present(self) -> list[ActorStatus]:
        """As `Coordinator.present`."""
        with self._changed:
            return self._coordinator.present()

    def spans(self) -> list[Span]:
        """As `Coordinator.spans`."""
        with self._changed:
            return self._coordinator.spans()

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """As `Coordinator.submit`; a prompt that leaves no room for an answer is a ValueError too."""
        self._check_lengths(prompts)
        with self._changed:
            self._coordinator.submit(prompts, sampling)

    def collect(self, count: int, deadline: float | None = None) -> list[list[Sample]]:
        """As `Coordinator.collect`."""
        with self._changed:
            return self._coordinator.collect(count, deadline)

    def finished(self, at_least: int) -> list[list[Sample]]:
        """As `Coordinator.finished`."""
        with self._changed:
            return self._coordinator.finished(at_least)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, list[Sample]]:
        """As `Coordinator.generate`; a prompt that leaves no room for an answer is a ValueError too."""
        self._check_lengths(prompts)
        with self._changed:
            return self._coordinator.generate(prompts, sampling)

    def sync(self, weights: Weights, wait: bool = True) -> None:
        """As `Coordinator.sync`."""
        with self._changed:
            self._coordinator.sync(weights, wait)

    def load(self, version: int, state: dict[str, Tensor]) -> None:
        """Publishes the weights of a version, by their Hugging Face names, or adapters of version 0, and syncs."""
        self.sync(publish(version, self._sent(state), self._engine.dtype))

    def wait_synced(self) -> None:
        """As `Coordinator.wait_synced`."""
        with self._changed:
            self._coordinator.wait_synced()

    def digests(self, state: dict[str, Tensor]) -> dict[str, int]:
        """What `RolloutActor.checksums` gives when an engine computes with these weights, or with these adapters."""
        adapters = any(map(is_adapter, state))
        whole = added(stored(self._engine.model), state) if adapters else self._sent(state).items()
        return digest((name, tensor.to(self._engine.dtype)) for name, tensor in whole)

    def resize(self, actors: int) -> None:
        """As `Coordinator.resize`."""
        with self._changed:
            self._coordinator.resize(actors)

    def _sent(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if not (self._tied and name == "lm_head.weight")}

    def _check_lengths(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if len(prompt.token_ids) >= self._engine.context:
                raise ValueError(
                    f"prompt {prompt.id} has {len(prompt.token_ids)} tokens; the context of {self._engine.context} "
                    "leaves no room for an answer"
                )

    def _launch(self, number: int) -> "_RayWorker":
        return _RayWorker(self._actor.remote(self._engine, number), self._inbox.put)

    def _serve(self) -> None:
        try:
            while (report := self._next_report()) is not None:
                with self._changed:
                    report()
                    self._coordinator.expire()
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._coordinator.fail(EngineError("the rollout fleet has been closed"))
                self._changed.notify_all()

    def _next_report(self) -> Report | None:
        try:
            return self._inbox.get(timeout=PERIOD)
        except queue.Empty:
            return lambda: None


class _Clock:
    """The machine's clock. Sleeping lets go of the fleet's lock and ends when the fleet has changed."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        self._changed.wait(seconds)


class _RayWorker:
    """A `Worker` that is a Ray actor. `report` is handed each answer, to be given by the fleet's thread."""

    def __init__(self, handle: Any, report: Callable[[Report], None]) -> None:
        self.handle = handle
        self._generate = handle.generate.options(concurrency_group=DRAWING)
        self._report = report

    def start(self, answer: Answer) -> None:
        self._send(self.handle.ready.remote(), answer)

    def pull(self, weights: Weights, answer: Answer) -> None:
        # In a list, so that the reference is fetched by the engine and not before the call.
        ref = self.handle.pull_weights.remote(weights.version, [weights.ref], weights.dtype, weights.adapters)
        self._send(ref, answer)

    def generate(self, chunk: GenerateRequest, answer: Answer) -> None:
        self._send(self._generate.remote(list(chunk.prompts), chunk.sampling), answer)

    def kill(self) -> None:
        ray.kill(self.handle)

    def _send(self, ref: ray.ObjectRef, answer: Answer) -> None:
        def done(future: Future[Any]) -> None:
            # On a thread of Ray's, which must not be kept: the fleet's own thread does the rest.
            self._report(lambda: answer(*_outcome(future)))

        ref.future().add_done_callback(done)


def _outcome(future: Future[Any]) -> tuple[Any, BaseException | None]:
    error = future.exception()
    if error is None:
        return future.result(), None
    line = str(error).strip().splitlines()[-1]
    if isinstance(error, RayTaskError) and isinstance(error.cause, ValueError):
        return None, ValueError(line)
    return None, EngineError(line)
