"""The driver's side of the rollout actors: starts, feeds, syncs, replaces and counts them.

One thread takes what the actors report, so that a replacement or a joiner comes to work without anybody waiting for it.
"""

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import ray
from torch import Tensor

from actors.rollout import Engine, RolloutActor, environment
from actors.roster import ActorState, Chunk, WorkList, advance
from actors.sample import Prompt, Sample, Sampling
from actors.weights import Weights, mismatch, publish
from cluster.failures import DeadlineError, EngineError, UserError
from cluster.plan import Share

Value = TypeVar("Value")


@dataclass
class Member:
    """A rollout actor as the fleet sees it. `due` holds a deadline for every call that it has not answered."""

    number: int
    handle: Any
    state: ActorState = ActorState.STARTING
    chunk: Chunk | None = None
    due: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Counters:
    """What the fleet has done since its start: tokens drawn, seconds that actors were at it, actors that died."""

    tokens: int = 0
    busy_seconds: float = 0.0
    deaths: int = 0


class Fleet:
    """Rollout actors that answer prompts between them. A context manager: leaving it ends the actors.

    Args:
        model: a Hugging Face model directory with its tokenizer; its weights are version 0.
        actors: how many actors to keep.
        share: what one actor may use.
        max_tokens_total: the most tokens of a prompt and its completion.
        seed: of draws that have no seed of their own.
        deadline: the most seconds that a start, a chunk of prompts or a weight transfer may take.
        actor: the class of the actors.

    Raises:
        UserError: there is no model in the directory.
    """

    def __init__(
        self,
        model: Path,
        actors: int,
        share: Share,
        max_tokens_total: int,
        seed: int,
        deadline: float,
        actor: type[RolloutActor] = RolloutActor,
    ) -> None:
        try:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{model} holds no model: its config.json cannot be read") from error
        self._tied = bool(config.get("tie_word_embeddings", False))
        self._engine = Engine(model, max_tokens_total, seed, share)
        self._actor = ray.remote(actor).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, runtime_env={"env_vars": environment(share)}
        )
        self._target = actors
        self._deadline = deadline
        self._started = 0
        self._members: list[Member] = []
        self._work = WorkList()
        self._weights: Weights | None = None
        self._counters = Counters()
        self._deaths_since_ready = 0
        self._failure: EngineError | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts all actors at once and waits until they are ready.

        Raises:
            EngineError: they do not come up; the message names the cause.
        """
        self._thread.start()
        try:
            with self._changed:
                self._grow()
            self._wait(lambda: self._count(ActorState.READY) >= self._target or None, "the rollout actors to start")
        except (EngineError, DeadlineError):
            self.close()
            raise

    def close(self) -> None:
        """Ends all actors; what they were at is dropped."""
        with self._changed:
            self._target = 0
            for member in list(self._members):
                self._dismiss(member)
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=self._deadline)

    def states(self) -> list[ActorState]:
        """The states of the actors that are not dead."""
        with self._changed:
            return [member.state for member in self._members]

    def handles(self) -> list[Any]:
        """The Ray handles of the actors that hold the current weights."""
        with self._changed:
            return [member.handle for member in self._members if member.state is ActorState.READY]

    def counters(self) -> Counters:
        """What has been done so far."""
        with self._changed:
            return self._counters

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Gives prompts to the actors and returns; `collect` hands out their samples.

        Raises:
            ValueError: a prompt leaves no room for an answer, or its id is in work.
        """
        for prompt in prompts:
            if len(prompt.token_ids) >= self._engine.context:
                raise ValueError(
                    f"prompt {prompt.id} has {len(prompt.token_ids)} tokens; the context of {self._engine.context} "
                    "leaves no room for an answer"
                )
        with self._changed:
            # Two chunks an actor: one batch is faster than many, and two let the faster actor take more.
            size = max(1, math.ceil(len(prompts) / (2 * max(1, self._target))))
            self._work.add(prompts, sampling, size)
            self._assign()

    def collect(self, count: int, deadline: float | None = None) -> list[list[Sample]]:
        """Waits for `count` prompts and hands out their samples, those that finished first to begin with.

        Raises:
            DeadlineError: they were not finished in time.
            EngineError: a prompt killed actor after actor, or no actor can be kept alive.
        """
        return self._wait(lambda: self._work.collect_any(count), f"samples of {count} prompts", deadline)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, list[Sample]]:
        """Samples of every prompt by its id. Raises as `submit` and `collect` do."""
        self.submit(prompts, sampling)
        ids = [prompt.id for prompt in prompts]
        return self._wait(lambda: self._work.collect(ids), f"samples of {len(ids)} prompts")

    def sync(self, version: int, state: dict[str, Tensor]) -> None:
        """Brings every actor to new weights, and proves by digest that each computes with them.

        Work that an actor has begun is finished with the old weights first; its samples say so. Actors that start or
        join later pull this version by themselves.

        Raises:
            ValueError: the version is not newer than the current one.
            EngineError: the weights do not arrive on any actor.
        """
        if version <= (self._weights.version if self._weights else 0):
            raise ValueError(f"weights of version {version} are not newer than what the fleet has")
        sent = {name: tensor for name, tensor in state.items() if not (self._tied and name == "lm_head.weight")}
        weights = publish(version, sent, self._engine.dtype)
        with self._changed:
            self._weights = weights
            for member in list(self._members):
                if member.state is ActorState.READY:
                    member.state = advance(member.state, ActorState.STALE)
                if member.state is ActorState.STALE:
                    self._pull(member)
        self._wait(
            lambda: (self._count(ActorState.READY) > 0 and not self._count(ActorState.STALE)) or None,
            f"the rollout actors to take weights of version {version}",
        )

    def resize(self, actors: int) -> None:
        """Changes the number of actors in the background: new ones join when ready, others finish their work and go."""
        with self._changed:
            self._target = actors
            order = [ActorState.STARTING, ActorState.STALE, ActorState.READY]
            staying = sorted((m for m in self._members if m.state in order), key=lambda m: order.index(m.state))
            for member in staying[: max(0, len(staying) - actors)]:
                if member.chunk is None:
                    self._dismiss(member)
                else:
                    member.state = advance(member.state, ActorState.DRAINING)
            self._grow()

    def _wait(self, take: Callable[[], Value | None], what: str, seconds: float | None = None) -> Value:
        # What an actor is stuck in ends at the deadline; a second one is left for another actor to do the work.
        seconds = 2 * self._deadline if seconds is None else seconds
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                taken = take()
                if taken is not None:
                    return taken
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"waited {seconds:.0f} s for {what}; actors: {', '.join(self.states())}")
                self._changed.wait(left)

    def _serve(self) -> None:
        try:
            while self._step():
                pass
        except EngineError as error:
            self._failure = error
        finally:
            with self._changed:
                self._failure = self._failure or EngineError("the rollout fleet has been closed")
                self._changed.notify_all()

    def _step(self) -> bool:
        try:
            report = self._inbox.get(timeout=1.0)
        except queue.Empty:
            report = self._expire
        if report is None:
            return False
        with self._changed:
            report()
            self._assign()
            self._changed.notify_all()
        return True

    def _call(self, member: Member, what: str, ref: ray.ObjectRef, answer: Callable[[Any], None]) -> None:
        member.due[what] = time.monotonic() + self._deadline

        def done(future: Future[Any]) -> None:
            # On a thread of Ray's, which must not be kept: the fleet's own thread does the rest.
            self._inbox.put(lambda: self._answered(member, what, future, answer))

        ref.future().add_done_callback(done)

    def _answered(self, member: Member, what: str, future: Future[Any], answer: Callable[[Any], None]) -> None:
        if member.state is ActorState.DEAD:
            return
        member.due.pop(what, None)
        error = future.exception()
        if error is not None:
            self._bury(member, f"{what}: {str(error).strip().splitlines()[-1]}")
        else:
            answer(future.result())

    def _expire(self) -> None:
        now = time.monotonic()
        for member in list(self._members):
            late = [what for what, due in member.due.items() if due < now]
            if late:
                self._bury(member, f"{late[0]}: no answer within {self._deadline:.0f} s")

    def _grow(self) -> None:
        while sum(member.state is not ActorState.DRAINING for member in self._members) < self._target:
            member = Member(self._started, self._actor.remote(self._engine, self._started))
            self._started += 1
            self._members.append(member)
            self._call(member, "start", member.handle.ready.remote(), partial(self._up, member))

    def _up(self, member: Member, _: None) -> None:
        member.state = advance(member.state, ActorState.STALE)
        if self._weights is None:
            self._synced(member)
        else:
            self._pull(member)

    def _pull(self, member: Member) -> None:
        weights = self._weights
        assert weights is not None
        ref = member.handle.pull_weights.remote(weights.version, [weights.ref], weights.dtype)
        self._call(member, f"weights {weights.version}", ref, partial(self._pulled, member, weights))

    def _pulled(self, member: Member, weights: Weights, found: dict[str, int]) -> None:
        differing = mismatch(weights.digests, found)
        if differing is not None:
            self._bury(member, f"weights {weights.version}: the engine computes with others in {differing}")
        elif weights is self._weights and member.state is ActorState.STALE:
            self._synced(member)

    def _synced(self, member: Member) -> None:
        member.state = advance(member.state, ActorState.READY)
        self._deaths_since_ready = 0

    def _assign(self) -> None:
        for member in self._members:
            if member.state is ActorState.READY and member.chunk is None and (chunk := self._work.take()):
                member.chunk = chunk
                ref = member.handle.generate.remote(list(chunk.prompts), chunk.sampling)
                self._call(member, _name(chunk), ref, partial(self._drawn, member, chunk, time.monotonic()))

    def _drawn(self, member: Member, chunk: Chunk, start: float, groups: list[list[Sample]]) -> None:
        member.chunk = None
        self._work.finish(chunk, groups)
        done = self._counters
        self._counters = replace(
            done,
            tokens=done.tokens + sum(len(sample.token_ids) for group in groups for sample in group),
            busy_seconds=done.busy_seconds + time.monotonic() - start,
        )
        if member.state is ActorState.DRAINING:
            self._dismiss(member)

    def _bury(self, member: Member, cause: str) -> None:
        starting = member.state in (ActorState.STARTING, ActorState.STALE)
        chunk = self._dismiss(member)
        self._counters = replace(self._counters, deaths=self._counters.deaths + 1)
        self._deaths_since_ready += starting
        if self._deaths_since_ready > self._target + 1:
            raise EngineError(f"{self._deaths_since_ready} rollout actors in a row did not come up; the last: {cause}")
        if chunk is not None:
            self._work.give_back(chunk, cause)
        self._grow()

    def _dismiss(self, member: Member) -> Chunk | None:
        member.state = advance(member.state, ActorState.DEAD)
        self._members.remove(member)
        ray.kill(member.handle)
        chunk, member.chunk = member.chunk, None
        return chunk

    def _count(self, state: ActorState) -> int:
        return sum(member.state is state for member in self._members)


def _name(chunk: Chunk) -> str:
    more = len(chunk.prompts) - 1
    return f"prompt {chunk.prompts[0].id}" + (f" and {more} more" if more else "")
