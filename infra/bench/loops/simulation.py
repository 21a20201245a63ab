"""Simulates rollout actors in time alone, so that the coordinator runs at thousands of samples a second.

Tests and benchmarks show with it, without engines, what the coordinator does when actors die, hang, join and leave, and
how it scales.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from actors.orchestrator.coordination.coordinator import Coordinator
from actors.orchestrator.coordination.protocols import Callback, Report
from actors.orchestrator.coordination.work_queue import GenerateRequest
from actors.rollout.engine import CPU_SEQUENCES
from actors.rollout.weights import Weights
from actors.types import Prompt, RolloutId, Sample

Call = Literal["start", "pull", "generate"]
# An actor that forgets says that it took new weights and keeps the old.
Fate = Literal["well", "die", "hang", "forget"]
# How often, in seconds, an actor that draws reports progress.
BEAT = 1.0


class Timeline:
    """A clock that stands still until someone waits, and then jumps to the next event."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        """Returns the seconds since the start."""
        return self._now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedules an action; those of one moment happen in the order in which they were scheduled."""
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), action))

    def sleep(self, seconds: float) -> None:
        """Jumps to the next event and runs it, or to the end of the sleep if that comes first."""
        end = self._now + seconds
        if not self._events or self._events[0][0] > end:
            self._now = end
            return
        self._now, _, action = heapq.heappop(self._events)
        action()

    def clear(self) -> None:
        """Drops all scheduled events, as the actors that they belong to are gone."""
        self._events.clear()

    def run(self, seconds: float) -> None:
        """Runs all events of the next seconds."""
        end = self._now + seconds
        while self._now < end:
            self.sleep(end - self._now)


@dataclass(frozen=True)
class Latency:
    """The seconds that a simulated actor takes.

    Attributes:
        start: to start an actor.
        pull: to pull weights.
        call: for a request, independent of its prompts: steps of the engine, which serve its other requests too.
        prompt: for each prompt of a request, added to `call`.
        spread: the standard deviation of the logarithm of a request's time, drawn anew for every one.
        long_factor: how many times as much a long prompt adds.
        long_tail: for the last tokens of a long prompt, while the engine serves others.
    """

    start: float = 3.0
    pull: float = 0.1
    call: float = 0.1
    prompt: float = 0.02
    spread: float = 0.1
    long_factor: float = 1.0
    long_tail: float = 0.0


@dataclass
class World:
    """The world of simulated actors.

    Attributes:
        chance: the source of randomness.
        fate: decides whether an actor works, dies or hangs in its next call.
        hung: the numbers of actors that hang, and since when.
        released: the seconds until the coordinator ended the actor, for each actor that hung.
        is_long: tells which prompts get long answers.
        is_deadly: tells over which prompts an actor dies.
        still_until: engines make no progress before.
        drawn: the prompts that actors finished, by whether they are long.
    """

    latency: Latency
    chance: random.Random
    fate: Callable[[Call], Fate] = lambda _: "well"
    timeline: Timeline = field(default_factory=Timeline)
    hung: dict[int, float] = field(default_factory=dict)
    released: list[float] = field(default_factory=list)
    is_long: Callable[[Prompt], bool] = lambda _: False
    is_deadly: Callable[[Prompt], bool] = lambda _: False
    still_until: float = 0.0
    drawn: Counter[bool] = field(default_factory=Counter)

    def coordinator(
        self, actors: int, deadline: float, swap_in_flight: bool = False, stall: float | None = None
    ) -> Coordinator:
        """Makes a coordinator of actors of this world, which looks for late ones every second.

        Args:
            actors: the number of actors to keep.
            deadline: the most seconds for a start or a pull.
            swap_in_flight: whether actors take new weights in the midst of completions.
            stall: the most seconds without progress; by default the deadline.
        """
        launch = partial(SimulatedWorker, self)
        stall = deadline if stall is None else stall
        coordinator = Coordinator(launch, self.timeline, actors, deadline, stall, CPU_SEQUENCES, swap_in_flight)

        def look() -> None:
            coordinator.expire()
            self.timeline.after(1.0, look)

        look()
        return coordinator


class SimulatedWorker:
    """A `Worker` whose calls take as long as the world's latency says."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.version = 0
        self._free_at = 0.0
        self._gone = self._hung = False
        self._answering = 0

    def start(self, callback: Callback) -> None:
        """Answers once the time of a start is over."""
        self._serve("start", self.world.latency.start, lambda: None, callback)

    def pull(self, weights: Weights, callback: Callback) -> None:
        """Takes over the version and answers with the digests of the weights."""

        def load() -> dict[str, int]:
            self.version = weights.version
            return weights.digests

        self._serve("pull", self.world.latency.pull, load, callback)

    def generate(self, request: GenerateRequest, report: Report, callback: Callback) -> None:
        """Reports samples of one token each, every prompt's when its time is over; answers after the last."""
        timeline, latency, fate = self.world.timeline, self.world.latency, self.world.fate("generate")
        if any(map(self.world.is_deadly, request.prompts)):
            fate = "die"
        luck = self.world.chance.lognormvariate(0, latency.spread)
        begin = timeline.now()
        self._free_at = max(self._free_at, self.world.still_until, begin + latency.call * luck)
        dues = []
        for prompt in request.prompts:
            is_long = self.world.is_long(prompt)
            self._free_at += latency.prompt * luck * (latency.long_factor if is_long else 1.0)
            dues.append(self._free_at + latency.long_tail * luck * is_long)
        if fate == "hang":
            self._hang()
            return
        end = (begin + max(dues)) / 2 if fate == "die" else max(dues)
        for index, (prompt, due) in enumerate(zip(request.prompts, dues, strict=True)):
            if due <= end and not self.world.is_deadly(prompt):
                finish = partial(self._finish, prompt, index, request.sampling.count, self.version, report)
                timeline.after(due - begin, finish)
        if fate == "die":
            timeline.after(end - begin, lambda: self._die(callback))
            return
        self._answering += 1
        if self._answering == 1:
            timeline.after(BEAT, partial(self._beat, report))
        timeline.after(end - begin, lambda: self._end(callback))

    def kill(self) -> None:
        """Ends the actor: it answers nothing more."""
        self._gone = True
        if self.number in self.world.hung:
            self.world.released.append(self.world.timeline.now() - self.world.hung.pop(self.number))

    def _serve(self, call: Call, seconds: float, compute: Callable[[], object], callback: Callback) -> None:
        timeline, fate = self.world.timeline, self.world.fate(call)
        self._free_at = max(self._free_at, timeline.now()) + seconds
        if fate == "hang":
            self._hang()
        elif fate == "die":
            timeline.after(self._free_at - timeline.now() - seconds / 2, lambda: self._die(callback))
        else:
            result = compute if fate == "well" else lambda: weights_of(self.version).digests
            timeline.after(self._free_at - timeline.now(), lambda: self._answer(result, callback))

    def _hang(self) -> None:
        self.world.hung.setdefault(self.number, self.world.timeline.now())
        # The call in progress and later calls wait for ever too.
        self._hung, self._free_at = True, float("inf")

    def _finish(self, prompt: Prompt, index: int, count: int, version: int, report: Report) -> None:
        if self._gone or self._hung:
            return
        self.world.drawn[self.world.is_long(prompt)] += 1
        ids = [RolloutId(prompt.epoch, prompt.id, sample) for sample in range(count)]
        report([(index, [Sample(rollout, [5], [-1.0], [version], "stop", "") for rollout in ids])])

    def _beat(self, report: Report) -> None:
        if self._answering and not (self._gone or self._hung):
            if self.world.timeline.now() >= self.world.still_until:
                report([])
            self.world.timeline.after(BEAT, partial(self._beat, report))

    def _end(self, callback: Callback) -> None:
        self._answering -= 1
        if not (self._gone or self._hung):
            callback(None, None)

    def _answer(self, compute: Callable[[], object], callback: Callback) -> None:
        if not self._gone:
            callback(compute(), None)

    def _die(self, callback: Callback) -> None:
        if not self._gone:
            callback(None, ConnectionError("the actor was killed"))


def weights_of(version: int) -> Weights:
    """Makes weights that consist of their version alone."""
    return Weights(version, None, torch.float32, {"all": version})
