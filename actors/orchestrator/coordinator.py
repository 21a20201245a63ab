"""Decides what every rollout actor does next: start, pull weights, answer prompts, be replaced or end.

There is no Ray here, no thread and no clock of its own: `fleet` runs this on real actors, `infra.bench.simulation` on
actors that exist only in simulated time. The cost of a decision does not grow with the number of actors.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from actors.orchestrator.accounting import Counters, FleetStats, Kind
from actors.orchestrator.members import REQUESTS_AT_ONCE, WORKING, ActorState, Member, Members
from actors.orchestrator.protocols import Callback, Clock, Worker
from actors.orchestrator.work_queue import GenerateRequest, WorkQueue
from actors.rollout.weights import Weights, mismatch
from actors.types import Prompt, Sample, Sampling
from cluster.errors import DeadlineError, EngineError
from cluster.trace import ActorStatus, Span

# Engines that start, answer and die again and again are replaced up to so many times for each, within so long. Machines
# that are taken away go less often.
DEATHS_OF_EACH = 10
DEATHS_SECONDS = 3600.0

Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")
Owner = TypeVar("Owner", bound="Coordinator")
Method = Callable[Concatenate[Owner, Arguments], Value]


def locked(method: Method[Owner, Arguments, Value]) -> Method[Owner, Arguments, Value]:
    """Makes a method of a coordinator hold its lock."""

    @wraps(method)
    def call(self: Owner, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        with self.lock:
            return method(self, *args, **kwargs)

    return call


@dataclass(frozen=True)
class _Call:
    """A call of an actor that has not been answered.

    Attributes:
        what: the call in words, for messages.
        due: the time after which the actor is given up.
    """

    member: Member
    kind: Kind
    what: str
    begin: float
    due: float


class Coordinator:
    """A fleet of rollout actors that share prompts.

    Public methods hold `lock`; whoever calls back for an actor has to hold it too.

    Args:
        launch: makes the actor of that number.
        clock: tells the time and waits.
        actors: the number of actors to keep.
        deadline: the most seconds that a start, a request or a weight transfer may take.
        sequences: the most completions that one request asks for, where there are several actors.
        swap_in_flight: whether actors take new weights in the midst of completions, and not only after them.
        lock: reentrant; needed where several threads use the fleet, and let go by the clock while it sleeps.
    """

    def __init__(
        self,
        launch: Callable[[int], Worker],
        clock: Clock,
        actors: int,
        deadline: float,
        sequences: int,
        swap_in_flight: bool = False,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.lock = nullcontext() if lock is None else lock
        self._launch = launch
        self._sequences = sequences
        self._swap_in_flight = swap_in_flight
        self._clock = clock
        self._target = actors
        self._deadline = deadline
        self._members = Members()
        # All calls have the same time to answer, so that the oldest is the first that can be late.
        self._calls: OrderedDict[int, _Call] = OrderedDict()
        self._call_count = 0
        self._queue = WorkQueue()
        self._weights: Weights | None = None
        self._stats = FleetStats(clock)
        self._deaths_since_ready = 0
        self._deaths: deque[float] = deque()
        self._failure: EngineError | None = None

    @locked
    def start(self) -> None:
        """Starts all actors at once and waits until they are ready.

        Raises:
            DeadlineError: they are not ready in time.
            EngineError: too many died; the message names the cause.
        """
        self._grow()
        self._wait(lambda: self._members.count(ActorState.READY) >= self._target or None, "the rollout actors to start")

    @locked
    def close(self) -> None:
        """Ends all actors and drops their requests; every wait raises an EngineError."""
        self._target = 0
        for member in self._members:
            self._members.remove(member)
        self.fail(EngineError("the rollout fleet has been closed"))

    @locked
    def fail(self, error: EngineError) -> None:
        """Makes every wait raise this error, unless there was one before."""
        self._failure = self._failure or error

    @locked
    def states(self) -> list[ActorState]:
        """Returns the states of the actors that are not dead."""
        return [member.state for member in self._members]

    @locked
    def ready(self) -> list[Worker]:
        """Returns the actors that hold the current weights."""
        return [member.worker for member in self._members if member.state is ActorState.READY]

    @locked
    def counters(self) -> Counters:
        """Returns the totals since the start."""
        return self._stats.counters

    @locked
    def statuses(self) -> list[ActorStatus]:
        """Returns state and weight version of the actors that are not dead."""
        return [ActorStatus(member.name, member.state, member.version) for member in self._members]

    @locked
    def take_spans(self) -> list[Span]:
        """Removes and returns what actors did since the last call, of very many spans only the newest."""
        return self._stats.take_spans()

    @locked
    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Queues prompts for the actors and returns; `collect` waits for their samples.

        Raises:
            ValueError: a prompt of that id and epoch is in work.
        """
        if self._target == 1:
            # In one request, whatever their number, completions do not depend on when the next one comes, bit by bit.
            size = len(prompts)
        else:
            share = math.ceil(len(prompts) / (REQUESTS_AT_ONCE * max(1, self._target)))
            # Of very many prompts, the faster actor takes more.
            size = min(share, max(1, self._sequences // sampling.count))
        self._queue.add(prompts, sampling, max(1, size))
        self._assign()

    @locked
    def collect(self, count: int, deadline: float | None = None) -> list[list[Sample]]:
        """Waits for `count` prompts and returns their samples, in the order in which they finished.

        Args:
            deadline: the most seconds to wait; by default twice the coordinator's.

        Raises:
            DeadlineError: they were not finished in time.
            EngineError: a prompt killed actor after actor, or no actor can be kept alive.
        """
        return self._wait(lambda: self._queue.collect_any(count), f"samples of {count} prompts", deadline)

    @locked
    def collect_all(self, at_least: int = 0) -> list[list[Sample]]:
        """Waits for `at_least` prompts and returns the samples of all that are finished. Raises as `collect` does."""
        return self._wait(lambda: self._queue.collect_all(at_least), f"samples of {at_least} prompts")

    @locked
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, list[Sample]]:
        """Returns the samples of every prompt by its id. Raises as `submit` and `collect` do."""
        self.submit(prompts, sampling)
        turns = [prompt.turn for prompt in prompts]
        groups = self._wait(lambda: self._queue.collect(turns), f"samples of {len(turns)} prompts")
        return {prompt.id: group for prompt, group in zip(prompts, groups, strict=True)}

    @locked
    def sync(self, weights: Weights, wait: bool = True) -> None:
        """Brings new weights to every actor, and proves by digest that each computes with them.

        Requests that an actor has begun are finished with the old weights first, unless actors swap them in flight;
        samples name the version of every token. Actors that start later pull this version by themselves.

        Args:
            wait: whether to return only when all actors have them. Else each pulls them as soon as it can and draws on
                meanwhile.

        Raises:
            ValueError: the version is not newer than the current one.
            EngineError: the weights do not arrive on any actor.
        """
        if weights.version <= (self._weights.version if self._weights else 0):
            raise ValueError(f"weights of version {weights.version} are not newer than what the fleet has")
        self._weights = weights
        for member in self._members:
            if member.state is ActorState.READY:
                self._members.move(member, ActorState.STALE)
            self._pull_if_stale(member)
        if wait:
            self.wait_synced()

    @locked
    def wait_synced(self) -> None:
        """Waits until all actors that have started hold the current weights. Raises as `sync` does."""
        self._wait(
            lambda: (self._members.count(ActorState.READY) > 0 and not self._members.count(ActorState.STALE)) or None,
            f"the rollout actors to take weights of version {self._weights.version if self._weights else 0}",
        )

    @locked
    def resize(self, actors: int) -> None:
        """Changes the number of actors and returns: new ones join when ready, others finish their requests and end."""
        self._target = actors
        order = [ActorState.STARTING, ActorState.STALE, ActorState.READY]
        staying = sorted((m for m in self._members if m.state in order), key=lambda m: order.index(m.state))
        for member in staying[: max(0, len(staying) - actors)]:
            if member.requests:
                self._members.move(member, ActorState.DRAINING)
            else:
                self._members.remove(member)
        self._grow()

    @locked
    def expire(self) -> None:
        """Replaces the actors that have not answered in time. To be called every second or so."""
        now = self._clock.now()
        while self._calls and (call := next(iter(self._calls.values()))).due <= now:
            self._calls.popitem(last=False)
            self._and_assign(partial(self._replace_dead, call, f"no answer within {self._deadline:.0f} s"))

    def _wait(self, take: Callable[[], Value | None], what: str, seconds: float | None = None) -> Value:
        """Waits until `take` returns something else than None, and returns that."""
        # An actor that is stuck is given up at the deadline; a second one is left for another actor to do the work.
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
        self,
        member: Member,
        kind: Kind,
        what: str,
        send: Callable[[Callback], None],
        on_success: Callable[[_Call, Any], None],
    ) -> None:
        """Sends a call to an actor; its answer is dropped if the actor is given up before."""
        number, self._call_count = self._call_count, self._call_count + 1
        now = self._clock.now()
        self._calls[number] = _Call(member, kind, what, now, now + self._deadline)
        send(partial(self._on_answer, number, on_success))

    def _on_answer(
        self, number: int, on_success: Callable[[_Call, Any], None], value: Any, error: BaseException | None
    ) -> None:
        call = self._calls.pop(number, None)
        if call is None or call.member.state is ActorState.DEAD:
            return
        if error is None:
            self._and_assign(partial(on_success, call, value))
        elif isinstance(error, ValueError):
            # The engine is well and refuses the request, as any other would.
            self.fail(EngineError(f"{call.what}: {error}"))
        else:
            self._and_assign(partial(self._replace_dead, call, str(error)))

    def _and_assign(self, action: Callable[[], None]) -> None:
        """Does something that may free actors or add requests, and assigns what waits. A failure goes to every wait."""
        try:
            action()
        except EngineError as error:
            self.fail(error)
        self._assign()

    def _grow(self) -> None:
        while self._members.count(ActorState.STARTING, *WORKING) < self._target:
            member = self._members.add(self._launch(self._members.next_number))
            self._call(member, "start", "start", member.worker.start, self._on_started)

    def _on_started(self, call: _Call, _: None) -> None:
        member = call.member
        self._stats.add_call(member.name, call.kind, call.begin)
        self._members.move(member, ActorState.STALE)
        if self._weights is None:
            self._set_ready(member)
        else:
            self._pull(member, self._weights)

    def _pull_if_stale(self, member: Member) -> None:
        """Has a stale member pull the current weights, unless it has to finish requests or a pull first."""
        free = self._swap_in_flight or not member.requests
        if member.state is ActorState.STALE and free and not member.pulling and self._weights:
            self._pull(member, self._weights)

    def _pull(self, member: Member, weights: Weights) -> None:
        member.pulling = True
        send = partial(member.worker.pull, weights)
        self._call(member, "weights", f"weights {weights.version}", send, partial(self._on_pulled, weights))

    def _on_pulled(self, weights: Weights, call: _Call, found: dict[str, int]) -> None:
        differing = mismatch(weights.digests, found)
        if differing is not None:
            self._replace_dead(call, f"the engine computes with others in {differing}")
            return
        member = call.member
        self._stats.add_call(member.name, call.kind, call.begin)
        member.version, member.pulling = weights.version, False
        if member.state is not ActorState.STALE:
            return
        if weights is self._weights:
            self._set_ready(member)
        else:
            # Newer ones have come meanwhile; those between would be loaded for nothing.
            self._pull_if_stale(member)

    def _set_ready(self, member: Member) -> None:
        self._members.move(member, ActorState.READY)
        self._deaths_since_ready = 0

    def _assign(self) -> None:
        """Gives the requests that wait to the members that take any."""
        idle = self._members.idle
        while (member := idle.first()) and (request := self._queue.take(concurrent=bool(member.requests))):
            if not member.requests:
                member.busy_since = self._clock.now()
            member.requests.append(request)
            idle.update(member)
            send = partial(member.worker.generate, request)
            self._call(member, "draw", str(request), send, partial(self._on_samples, request))

    def _on_samples(self, request: GenerateRequest, call: _Call, groups: list[list[Sample]]) -> None:
        member, now = call.member, self._clock.now()
        member.requests.remove(request)
        self._queue.finish(request, groups)
        self._stats.add_samples(member.name, call.begin, now - member.busy_since, request, groups)
        member.busy_since = now
        if member.state is ActorState.DRAINING and not member.requests:
            self._members.remove(member)
        else:
            self._pull_if_stale(member)
            self._members.idle.update(member)

    def _replace_dead(self, call: _Call, why: str) -> None:
        """Ends the member of a call, puts its requests back and starts another.

        Raises:
            EngineError: more members in a row died while they started than the fleet has, a prompt has been in too many
                deaths, or there were more than `DEATHS_OF_EACH` deaths for each member within `DEATHS_SECONDS`.
        """
        member, cause = call.member, f"{call.what}: {why}"
        if member.state is ActorState.DEAD:
            return
        starting = member.state in (ActorState.STARTING, ActorState.STALE)
        requests = self._members.remove(member)
        self._stats.add_death(member.name, call.kind, call.begin, requests)
        self._deaths_since_ready += starting
        if self._deaths_since_ready > self._target:
            raise EngineError(f"{self._deaths_since_ready} rollout actors in a row did not come up; the last: {cause}")
        now = self._clock.now()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_SECONDS:
            self._deaths.popleft()
        if len(self._deaths) > DEATHS_OF_EACH * self._target:
            raise EngineError(
                f"{len(self._deaths)} rollout actors of a fleet of {self._target} died within "
                f"{DEATHS_SECONDS / 60:g} minutes; the last: {cause}"
            )
        for request in requests:
            self._queue.requeue(request, cause)
        self._grow()
