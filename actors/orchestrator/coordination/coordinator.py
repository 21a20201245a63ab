"""Decides the next action of every rollout actor: start, pull weights, answer prompts, be replaced or end.

There is no Ray here, no thread and no clock of its own: `fleet` runs this on real actors,
`infra.bench.loops.simulation` on actors that exist only in simulated time. The cost of a decision grows at most with
the logarithm of the number of actors. What users of a fleet call and wait for is here, the life of actors in
`lifecycle`, their work in `dispatcher`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from actors.orchestrator.coordination.accounting import Counters, FleetStats
from actors.orchestrator.coordination.calls import Calls, PendingCall
from actors.orchestrator.coordination.dispatcher import Dispatcher
from actors.orchestrator.coordination.lifecycle import Lifecycle
from actors.orchestrator.coordination.members import ActorState, Members
from actors.orchestrator.coordination.protocols import Clock, Worker
from actors.orchestrator.coordination.work_queue import WorkQueue
from actors.rollout.weights import Weights
from actors.types import Prompt, Sample, Sampling
from cluster.errors import DeadlineError, EngineError
from cluster.trace import ActorStatus, Span

# Requests that the prompts of one submission make for each actor, so that the faster one takes more of them.
REQUESTS_AN_ACTOR = 3

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


class Coordinator:
    """A fleet of rollout actors that share prompts.

    Public methods hold `lock`; the callbacks of actors must be called with it held too.

    Args:
        launch: makes the actor of that number.
        clock: tells the time and waits.
        actors: the number of actors to keep.
        deadline: the most seconds that a start or a weight transfer may take.
        stall: the most seconds without progress of an actor that draws.
        sequences: the completions that an engine decodes at once.
        swap_in_flight: whether actors take new weights in the midst of completions, and not only after them.
        lock: reentrant; needed where several threads use the fleet, and let go by the clock while it sleeps.
    """

    def __init__(
        self,
        launch: Callable[[int], Worker],
        clock: Clock,
        actors: int,
        deadline: float,
        stall: float,
        sequences: int,
        swap_in_flight: bool = False,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.lock = nullcontext() if lock is None else lock
        self._clock = clock
        self._deadline = deadline
        self._sequences = sequences
        self._members = Members()
        self._queue = WorkQueue()
        self._stats = FleetStats(clock)
        self._calls = Calls(clock, deadline, stall, self._settle, self._on_error)
        self._lives = Lifecycle(
            launch, clock, self._members, self._calls, self._queue, self._stats, actors, swap_in_flight
        )
        self._dispatcher = Dispatcher(
            self._members,
            self._calls,
            self._queue,
            self._stats,
            clock,
            sequences,
            self._settle,
            self._lives.on_request_done,
        )
        self._failure: EngineError | None = None

    @locked
    def start(self) -> None:
        """Starts all actors at once and waits until they are ready.

        Raises:
            DeadlineError: they are not ready in time.
            EngineError: too many died; the message names the cause.
        """
        self._lives.grow()
        self._wait(
            lambda: self._members.count(ActorState.READY) >= self._lives.target or None, "the rollout actors to start"
        )

    @locked
    def close(self) -> None:
        """Ends all actors and drops their requests; every wait raises an EngineError."""
        self._lives.close()
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
        """Removes and returns the spans of the actors' work since the last call, of very many only the newest."""
        return self._stats.take_spans()

    @locked
    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Queues prompts for the actors and returns; `collect` waits for their samples.

        Raises:
            ValueError: a prompt of that id and epoch is in work.
        """
        if self._lives.target == 1:
            # All in one request: completions then do not depend, to the last bit, on when the next request comes.
            size = len(prompts)
        else:
            share = math.ceil(len(prompts) / (REQUESTS_AN_ACTOR * max(1, self._lives.target)))
            # Many prompts make several requests for each actor, of which the faster actor takes more.
            size = min(share, max(1, self._sequences // sampling.count))
        self._queue.add(prompts, sampling, max(1, size))
        self._dispatcher.assign()

    @locked
    def collect(self, count: int, deadline: float | None = None) -> list[list[Sample]]:
        """Waits for `count` prompts and returns their samples, in the order in which they finished.

        Args:
            deadline: the most seconds to wait; by default twice the coordinator's without progress of any actor.

        Raises:
            DeadlineError: they were not finished in time.
            EngineError: a prompt killed actor after actor, or no actor can be kept alive.
        """
        return _drawn(self._wait(lambda: self._queue.collect_any(count), f"samples of {count} prompts", deadline))

    @locked
    def collect_all(self, at_least: int = 0) -> list[list[Sample]]:
        """Waits for `at_least` prompts and returns the samples of all that are finished, or given up: those have a
        `failure`. Otherwise raises as `collect` does."""
        return self._wait(lambda: self._queue.collect_all(at_least), f"samples of {at_least} prompts")

    @locked
    def begun(self) -> dict[int, int]:
        """Returns, for each version of the weights, the number of prompts that an actor began with it and that have not
        been collected."""
        return self._queue.begun

    @locked
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, list[Sample]]:
        """Returns the samples of every prompt by its id. Raises as `submit` and `collect` do."""
        self.submit(prompts, sampling)
        turns = [prompt.turn for prompt in prompts]
        groups = _drawn(self._wait(lambda: self._queue.collect(turns), f"samples of {len(turns)} prompts"))
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
        if weights.version <= self._version:
            raise ValueError(f"weights of version {weights.version} are not newer than what the fleet has")
        self._lives.update(weights)
        if wait:
            self.wait_synced()

    @locked
    def wait_synced(self) -> None:
        """Waits until all actors that have started hold the current weights. Raises as `sync` does."""
        self._wait(
            lambda: (self._members.count(ActorState.READY) > 0 and not self._members.count(ActorState.STALE)) or None,
            f"the rollout actors to take weights of version {self._version}",
        )

    @locked
    def resize(self, actors: int) -> None:
        """Changes the number of actors and returns: new ones join when ready, others finish their requests and end."""
        self._lives.resize(actors)

    @locked
    def expire(self) -> None:
        """Replaces the actors that are late or have stopped. To be called every second or so."""
        for member, kind, cause, begin in self._calls.take_late():
            stalled = kind == "draw"
            self._settle(partial(self._lives.replace, member, kind, begin, cause, stalled))

    @property
    def _version(self) -> int:
        return self._lives.weights.version if self._lives.weights else 0

    def _wait(self, take: Callable[[], Value | None], what: str, seconds: float | None = None) -> Value:
        """Waits until `take` returns something else than None, and returns that."""
        begin = self._clock.now()
        while True:
            self.expire()
            if self._failure is not None:
                raise self._failure
            taken = take()
            if taken is not None:
                return taken
            now = self._clock.now()
            # An actor that is stuck is given up at the deadline; as long again is left for another to do its work.
            # While tokens are drawn, the wait goes on.
            most = 2 * self._calls.longest_wait
            end = max(begin, self._calls.last_progress) + most if seconds is None else begin + seconds
            if now >= end:
                without = f", the last {most:.0f} without progress" if seconds is None else ""
                actors = ", ".join(self.states())
                raise DeadlineError(f"waited {now - begin:.0f} s for {what}{without}; actors: {actors}")
            self._clock.sleep(self._calls.next_due(end) - now)

    def _on_error(self, call: PendingCall, error: BaseException) -> None:
        cause = f"{call.what}: {error}"
        if isinstance(error, ValueError):
            # The engine is well and refuses the request, as any other engine would.
            self.fail(EngineError(cause))
        else:
            self._settle(partial(self._lives.replace, call.member, call.kind, call.begin, cause))

    def _settle(self, action: Callable[[], None]) -> None:
        """Runs an action that may free actors or add requests, then gives the requests that wait to actors. A failure
        of the action is raised by every wait."""
        try:
            action()
        except EngineError as error:
            self.fail(error)
        self._dispatcher.assign()


def _drawn(groups: list[list[Sample]]) -> list[list[Sample]]:
    """Returns the groups.

    Raises:
        EngineError: one was given up, because its prompt killed actor after actor.
    """
    failure = next((group[0].failure for group in groups if group[0].given_up), None)
    if failure is not None:
        raise EngineError(failure)
    return groups
