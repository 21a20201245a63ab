"""Decides what every rollout actor does next: who starts, pulls weights, answers prompts, is replaced or goes.

No Ray, no threads and no clock of its own: `fleet` runs this on real actors, `simulation` on ones that exist only in
time. The work of a decision does not grow with the number of actors.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from actors.orchestrator.accounting import Counters, FleetStats, Kind
from actors.orchestrator.members import CHUNKS_AT_ONCE, IdleQueue, Member
from actors.orchestrator.protocols import Answer, Clock, Worker
from actors.orchestrator.work_queue import ActorState, GenerateRequest, WorkList, advance
from actors.rollout.weights import Weights, mismatch
from actors.types import Prompt, Sample, Sampling
from cluster.errors import DeadlineError, EngineError
from cluster.trace import ActorStatus, Span

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Call:
    member: Member
    kind: Kind
    what: str
    begin: float
    due: float


class Coordinator:
    """Rollout actors that answer prompts between them.

    Not safe for several threads: whoever has more than one holds a lock around every method and every answer.

    Args:
        launch: makes the actor of that number.
        clock: tells and passes the time.
        actors: how many actors to keep.
        deadline: the most seconds that a start, a chunk of prompts or a weight transfer may take.
        sequences: the most that are drawn in one call, where there are several actors.
        swap_in_flight: actors take new weights in the midst of answers, and not after them.
    """

    def __init__(
        self,
        launch: Callable[[int], Worker],
        clock: Clock,
        actors: int,
        deadline: float,
        sequences: int,
        swap_in_flight: bool = False,
    ) -> None:
        self._launch = launch
        self._sequences = sequences
        self._swap_in_flight = swap_in_flight
        self._clock = clock
        self._target = actors
        self._deadline = deadline
        self._started = 0
        self._members: dict[int, Member] = {}
        self._states: Counter[ActorState] = Counter()
        self._takers = IdleQueue()
        # All have the same time to answer, so that the oldest is the first that can be late.
        self._calls: OrderedDict[int, _Call] = OrderedDict()
        self._called = 0
        self._work = WorkList()
        self._weights: Weights | None = None
        self._books = FleetStats(clock)
        self._deaths_since_ready = 0
        self._failure: EngineError | None = None

    def start(self) -> None:
        """Starts all actors at once and waits until they are ready.

        Raises:
            EngineError: they do not come up; the message names the cause.
        """
        self._grow()
        self._wait(lambda: self._states[ActorState.READY] >= self._target or None, "the rollout actors to start")

    def close(self) -> None:
        """Ends all actors; what they were at is dropped, and who waits for it is told."""
        self._target = 0
        for member in list(self._members.values()):
            self._dismiss(member)
        self.fail(EngineError("the rollout fleet has been closed"))

    def fail(self, error: EngineError) -> None:
        """Makes every wait end with this error, unless there was one before."""
        self._failure = self._failure or error

    def states(self) -> list[ActorState]:
        """The states of the actors that are not dead."""
        return [member.state for member in self._members.values()]

    def ready(self) -> list[Worker]:
        """The actors that hold the current weights."""
        return [member.worker for member in self._members.values() if member.state is ActorState.READY]

    def counters(self) -> Counters:
        """What has been done so far."""
        return self._books.counters

    def present(self) -> list[ActorStatus]:
        """The actors that are not dead."""
        return [ActorStatus(member.name, member.state, member.version) for member in self._members.values()]

    def spans(self) -> list[Span]:
        """As `FleetStats.spans`."""
        return self._books.spans()

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Gives prompts to the actors and returns; `collect` hands out their samples.

        Raises:
            ValueError: a prompt's id is in work.
        """
        if self._target == 1:
            # Drawn in one call whatever their number, answers do not depend on when the next call comes, bit by bit.
            size = len(prompts)
        else:
            share = math.ceil(len(prompts) / (CHUNKS_AT_ONCE * max(1, self._target)))
            # Of very many prompts, the faster actor takes more.
            size = min(share, max(1, self._sequences // sampling.count))
        self._work.add(prompts, sampling, max(1, size))
        self._assign()

    def collect(self, count: int, deadline: float | None = None) -> list[list[Sample]]:
        """Waits for `count` prompts and hands out their samples, those that finished first to begin with.

        Raises:
            DeadlineError: they were not finished in time.
            EngineError: a prompt killed actor after actor, or no actor can be kept alive.
        """
        return self._wait(lambda: self._work.collect_any(count), f"samples of {count} prompts", deadline)

    def finished(self, at_least: int) -> list[list[Sample]]:
        """Waits for so many prompts, or for none, and hands out the samples of all that are finished. Raises as
        `collect`."""
        return self._wait(lambda: self._work.finished(at_least), f"samples of {at_least} prompts")

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, list[Sample]]:
        """Samples of every prompt by its id. Raises as `submit` and `collect` do."""
        self.submit(prompts, sampling)
        ids = [prompt.id for prompt in prompts]
        return self._wait(lambda: self._work.collect(ids), f"samples of {len(ids)} prompts")

    def sync(self, weights: Weights, wait: bool) -> None:
        """Brings every actor to new weights, and proves by digest that each computes with them.

        Work that an actor has begun is finished with the old weights first, unless actors swap them in flight; its
        samples say so. Actors that start or join later pull this version by themselves.

        Args:
            wait: for all actors to have them. Without, each pulls them as soon as it can and draws on meanwhile.

        Raises:
            ValueError: the version is not newer than the current one.
            EngineError: the weights do not arrive on any actor.
        """
        if weights.version <= (self._weights.version if self._weights else 0):
            raise ValueError(f"weights of version {weights.version} are not newer than what the fleet has")
        self._weights = weights
        for member in list(self._members.values()):
            if member.state is ActorState.READY:
                self._move(member, ActorState.STALE)
            self._renew(member)
        if wait:
            self.wait_synced()

    def wait_synced(self) -> None:
        """Waits until all actors that have started hold the current weights. Raises as `sync` does."""
        self._wait(
            lambda: (self._states[ActorState.READY] > 0 and not self._states[ActorState.STALE]) or None,
            f"the rollout actors to take weights of version {self._weights.version if self._weights else 0}",
        )

    def resize(self, actors: int) -> None:
        """Changes the number of actors in the background: new ones join when ready, others finish their work and go."""
        self._target = actors
        order = [ActorState.STARTING, ActorState.STALE, ActorState.READY]
        staying = sorted((m for m in self._members.values() if m.state in order), key=lambda m: order.index(m.state))
        for member in staying[: max(0, len(staying) - actors)]:
            if member.chunks:
                self._move(member, ActorState.DRAINING)
            else:
                self._dismiss(member)
        self._grow()

    def expire(self) -> None:
        """Replaces the actors that have not answered in time. To be called every second or so."""
        now = self._clock.now()
        while self._calls and (call := next(iter(self._calls.values()))).due <= now:
            self._calls.popitem(last=False)
            self._guarded(partial(self._replace_dead, call, f"no answer within {self._deadline:.0f} s"))

    def _wait(self, take: Callable[[], Value | None], what: str, seconds: float | None = None) -> Value:
        # What an actor is stuck in ends at the deadline; a second one is left for another actor to do the work.
        seconds = 2 * self._deadline if seconds is None else seconds
        end = self._clock.now() + seconds
        while True:
            self.expire()
            if self._failure is not None:
                raise self._failure
            taken = take()
            if taken is not None:
                return taken
            now = self._clock.now()
            if now >= end:
                raise DeadlineError(f"waited {seconds:.0f} s for {what}; actors: {', '.join(self.states())}")
            due = next(iter(self._calls.values())).due if self._calls else end
            self._clock.sleep(min(end, due) - now)

    def _call(
        self, member: Member, kind: Kind, what: str, ask: Callable[[Answer], None], then: Callable[[_Call, Any], None]
    ) -> None:
        number, self._called = self._called, self._called + 1
        now = self._clock.now()
        self._calls[number] = _Call(member, kind, what, now, now + self._deadline)
        ask(partial(self._answered, number, then))

    def _answered(
        self, number: int, then: Callable[[_Call, Any], None], value: Any, error: BaseException | None
    ) -> None:
        call = self._calls.pop(number, None)
        if call is None or call.member.state is ActorState.DEAD:
            return
        if error is None:
            self._guarded(partial(then, call, value))
        elif isinstance(error, ValueError):
            # The engine is well and refuses the request, as any other would.
            self.fail(EngineError(f"{call.what}: {error}"))
        else:
            self._guarded(partial(self._replace_dead, call, str(error)))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Keeps a failure for whoever waits, and gives those who have nothing to do what there is."""
        try:
            action()
        except EngineError as error:
            self.fail(error)
        self._assign()

    def _grow(self) -> None:
        while len(self._members) - self._states[ActorState.DRAINING] < self._target:
            member = Member(self._started, self._launch(self._started))
            self._started += 1
            self._members[member.number] = member
            self._states[member.state] += 1
            self._call(member, "start", "start", member.worker.start, self._up)

    def _up(self, call: _Call, _: None) -> None:
        member = call.member
        self._books.done(member.name, call.kind, call.begin)
        self._move(member, ActorState.STALE)
        if self._weights is None:
            self._synced(member)
        else:
            self._pull(member, self._weights)

    def _renew(self, member: Member) -> None:
        """Has a member that is stale pull the current weights, as soon as it may."""
        free = self._swap_in_flight or not member.chunks
        if member.state is ActorState.STALE and free and not member.pulling and self._weights:
            self._pull(member, self._weights)

    def _pull(self, member: Member, weights: Weights) -> None:
        member.pulling = True
        ask = partial(member.worker.pull, weights)
        self._call(member, "weights", f"weights {weights.version}", ask, partial(self._pulled, weights))

    def _pulled(self, weights: Weights, call: _Call, found: dict[str, int]) -> None:
        differing = mismatch(weights.digests, found)
        if differing is not None:
            self._replace_dead(call, f"the engine computes with others in {differing}")
            return
        member = call.member
        self._books.done(member.name, call.kind, call.begin)
        member.version, member.pulling = weights.version, False
        if member.state is not ActorState.STALE:
            return
        if weights is self._weights:
            self._synced(member)
        else:
            # Newer ones have come meanwhile; those between would be loaded for nothing.
            self._renew(member)

    def _synced(self, member: Member) -> None:
        self._move(member, ActorState.READY)
        self._deaths_since_ready = 0

    def _assign(self) -> None:
        while (member := self._takers.next()) and (chunk := self._work.take(beside=bool(member.chunks))):
            if not member.chunks:
                member.booked = self._clock.now()
            member.chunks.append(chunk)
            self._takers.place(member)
            ask = partial(member.worker.generate, chunk)
            self._call(member, "draw", _name(chunk), ask, partial(self._drawn, chunk))

    def _drawn(self, chunk: GenerateRequest, call: _Call, groups: list[list[Sample]]) -> None:
        member, now = call.member, self._clock.now()
        member.chunks.remove(chunk)
        self._work.finish(chunk, groups)
        self._books.drawn(member.name, call.begin, now - member.booked, chunk, groups)
        member.booked = now
        if member.state is ActorState.DRAINING and not member.chunks:
            self._dismiss(member)
        else:
            self._renew(member)
            self._takers.place(member)

    def _replace_dead(self, call: _Call, why: str) -> None:
        member, cause = call.member, f"{call.what}: {why}"
        if member.state is ActorState.DEAD:
            return
        starting = member.state in (ActorState.STARTING, ActorState.STALE)
        chunks = self._dismiss(member)
        self._books.lost(member.name, call.kind, call.begin, chunks)
        self._deaths_since_ready += starting
        if self._deaths_since_ready > self._target:
            raise EngineError(f"{self._deaths_since_ready} rollout actors in a row did not come up; the last: {cause}")
        for chunk in chunks:
            self._work.requeue(chunk, cause)
        self._grow()

    def _dismiss(self, member: Member) -> list[GenerateRequest]:
        self._move(member, ActorState.DEAD)
        del self._members[member.number]
        member.worker.kill()
        chunks, member.chunks = member.chunks, []
        return chunks

    def _move(self, member: Member, to: ActorState) -> None:
        self._states[member.state] -= 1
        member.state = advance(member.state, to)
        if to is not ActorState.DEAD:
            self._states[to] += 1
        self._takers.place(member)


def _name(chunk: GenerateRequest) -> str:
    more = len(chunk.prompts) - 1
    return f"prompt {chunk.prompts[0].id}" + (f" and {more} more" if more else "")
