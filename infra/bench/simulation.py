"""Rollout actors that exist only in time: the coordinator's code runs on them at thousands of samples a second.

For showing what it does when actors die, hang, come and go, and how it scales, without engines.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from actors.orchestrator.coordinator import Coordinator
from actors.orchestrator.protocols import Answer
from actors.orchestrator.work_queue import CPU_SEQUENCES, GenerateRequest
from actors.rollout.weights import Weights
from actors.types import Sample

Call = Literal["start", "pull", "generate"]
# Who forgets goes on with the weights it has.
Fate = Literal["well", "die", "hang", "forget"]


class Timeline:
    """A clock that stands still until somebody waits, and then jumps to the next event."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        """Seconds since the start."""
        return self._now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Has something happen in so many seconds; events of one moment happen in the order of these calls."""
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), action))

    def sleep(self, seconds: float) -> None:
        """Goes to the next event and has it happen, or to the end of the sleep if that comes first."""
        end = self._now + seconds
        if not self._events or self._events[0][0] > end:
            self._now = end
            return
        self._now, _, action = heapq.heappop(self._events)
        action()

    def clear(self) -> None:
        """Forgets what was to happen: those whom it was to happen to are no more."""
        self._events.clear()

    def run(self, seconds: float) -> None:
        """Has everything happen that falls into the next seconds."""
        end = self._now + seconds
        while self._now < end:
            self.sleep(end - self._now)


@dataclass(frozen=True)
class Latency:
    """Seconds that a simulated actor takes: to start, to pull weights, and for prompts in one call.

    `call` is what a call takes whatever its prompts are: steps of the engine, which goes on with other calls in the
    same steps. `prompt` is what each prompt adds to them. `spread` is the standard deviation of the logarithm of the
    time for prompts, drawn anew for every call.
    """

    start: float = 3.0
    pull: float = 0.1
    call: float = 0.1
    prompt: float = 0.02
    spread: float = 0.1


@dataclass
class World:
    """What simulated actors share.

    Attributes:
        fate: what becomes of an actor in its next call.
        hung: actors that hang, and since when they had not answered.
        released: how long each of them was waited for until the coordinator ended it.
    """

    latency: Latency
    chance: random.Random
    fate: Callable[[Call], Fate] = lambda _: "well"
    timeline: Timeline = field(default_factory=Timeline)
    hung: dict[int, float] = field(default_factory=dict)
    released: list[float] = field(default_factory=list)

    def coordinator(self, actors: int, deadline: float, swap_in_flight: bool = False) -> Coordinator:
        """A coordinator of actors of this world, which looks for late ones every second."""
        coordinator = Coordinator(
            partial(SimulatedWorker, self), self.timeline, actors, deadline, CPU_SEQUENCES, swap_in_flight
        )

        def look() -> None:
            coordinator.expire()
            self.timeline.after(1.0, look)

        look()
        return coordinator


class SimulatedWorker:
    """A `Worker` that is at its calls as long as the latency says."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.version = 0
        self._free_at = 0.0
        self._gone = False

    def start(self, answer: Answer) -> None:
        """As `Worker.start`."""
        self._serve("start", self.world.latency.start, lambda: None, answer)

    def pull(self, weights: Weights, answer: Answer) -> None:
        """As `Worker.pull`."""

        def load() -> dict[str, int]:
            self.version = weights.version
            return weights.digests

        self._serve("pull", self.world.latency.pull, load, answer)

    def generate(self, chunk: GenerateRequest, answer: Answer) -> None:
        """As `Worker.generate`; every sample is one token long."""

        def draw() -> list[list[Sample]]:
            return [
                [Sample(p.id, i, [5], [-1.0], [self.version], "stop", "") for i in range(chunk.sampling.count)]
                for p in chunk.prompts
            ]

        latency = self.world.latency
        luck = self.world.chance.lognormvariate(0, latency.spread)
        seconds = latency.prompt * len(chunk.prompts)
        self._serve("generate", seconds * luck, draw, answer, steps=latency.call * luck)

    def kill(self) -> None:
        """As `Worker.kill`."""
        self._gone = True
        if self.number in self.world.hung:
            self.world.released.append(self.world.timeline.now() - self.world.hung.pop(self.number))

    def _serve(
        self, call: Call, seconds: float, give: Callable[[], object], answer: Answer, steps: float = 0.0
    ) -> None:
        timeline, fate = self.world.timeline, self.world.fate(call)
        self._free_at = max(self._free_at, timeline.now() + steps) + seconds
        if fate == "hang":
            self.world.hung.setdefault(self.number, timeline.now())
            # What comes after it waits for ever too.
            self._free_at = float("inf")
        elif fate == "die":
            timeline.after(self._free_at - timeline.now() - seconds / 2, lambda: self._die(answer))
        else:
            given = give if fate == "well" else lambda: weights_of(self.version).digests
            timeline.after(self._free_at - timeline.now(), lambda: self._give(given, answer))

    def _give(self, give: Callable[[], object], answer: Answer) -> None:
        if not self._gone:
            answer(give(), None)

    def _die(self, answer: Answer) -> None:
        if not self._gone:
            answer(None, ConnectionError("the actor was killed"))


def weights_of(version: int) -> Weights:
    """Weights that are nothing but their version."""
    return Weights(version, None, torch.float32, {"all": version})
