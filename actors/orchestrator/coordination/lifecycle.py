"""Starts, updates, replaces and ends the rollout actors of a fleet."""

from collections import deque
from collections.abc import Callable
from functools import partial

from actors.orchestrator.coordination.accounting import FleetStats, Kind
from actors.orchestrator.coordination.calls import Calls, PendingCall
from actors.orchestrator.coordination.members import WORKING, ActorState, Member, Members
from actors.orchestrator.coordination.protocols import Clock, Worker
from actors.orchestrator.coordination.work_queue import WorkQueue
from actors.rollout.weights import Weights, mismatch
from cluster.errors import EngineError

# The most deaths for each actor of a fleet within so many seconds: engines may start, answer and die again and again.
# Preempted machines go less often.
DEATHS_OF_EACH = 10
DEATHS_SECONDS = 3600.0


class Lifecycle:
    """Keeps the number of actors at `target`, and the current weights in all of them.

    Args:
        launch: makes the actor of that number.
        clock: tells the time.
        members: the actors.
        calls: sends calls to them.
        queue: gets the prompts of actors that die.
        stats: counts the actors' calls and deaths.
        target: the number of actors to keep.
        swap_in_flight: whether actors take new weights in the midst of completions, and not only after them.

    Attributes:
        weights: the current ones; None for those of the model's folder.
    """

    def __init__(
        self,
        launch: Callable[[int], Worker],
        clock: Clock,
        members: Members,
        calls: Calls,
        queue: WorkQueue,
        stats: FleetStats,
        target: int,
        swap_in_flight: bool,
    ) -> None:
        self.target = target
        self.weights: Weights | None = None
        self._launch, self._clock, self._members, self._calls = launch, clock, members, calls
        self._queue, self._stats = queue, stats
        self._swap_in_flight = swap_in_flight
        self._deaths_since_ready = 0
        self._deaths: deque[float] = deque()

    def grow(self) -> None:
        """Starts the actors that are missing."""
        while self._members.count(ActorState.STARTING, *WORKING) < self.target:
            member = self._members.add(self._launch(self._members.next_number))
            self._calls.send(member, "start", "start", member.worker.start, self._on_started)

    def resize(self, target: int) -> None:
        """Changes the number of actors: new ones join when they are ready, others finish their requests and end."""
        self.target = target
        order = [ActorState.STARTING, ActorState.STALE, ActorState.READY]
        staying = sorted((m for m in self._members if m.state in order), key=lambda m: order.index(m.state))
        for member in staying[: max(0, len(staying) - target)]:
            if member.requests:
                self._members.move(member, ActorState.DRAINING)
            else:
                self._members.remove(member)
        self.grow()

    def close(self) -> None:
        """Ends all actors and starts none."""
        self.target = 0
        for member in self._members:
            self._members.remove(member)

    def update(self, weights: Weights) -> None:
        """Makes every actor pull new weights as soon as it can."""
        self.weights = weights
        for member in self._members:
            if member.state is ActorState.READY:
                self._members.move(member, ActorState.STALE)
            self._pull_if_stale(member)

    def on_request_done(self, member: Member) -> None:
        """Ends an actor that was only finishing its requests, or makes it pull weights that waited for them."""
        if member.state is ActorState.DRAINING and not member.requests:
            self._members.remove(member)
        else:
            self._pull_if_stale(member)

    def replace(self, member: Member, kind: Kind, begin: float, cause: str, stalled: bool = False) -> None:
        """Ends an actor, puts its prompts back and starts another.

        Args:
            member: the actor.
            kind: of the call that it failed in.
            begin: when that call was sent.
            cause: why it is given up, in words.
            stalled: whether it is ended because it made no progress.

        Raises:
            EngineError: more actors in a row died while they started than the fleet has, or there were more than
                `DEATHS_OF_EACH` deaths for each actor within `DEATHS_SECONDS`.
        """
        if member.state is ActorState.DEAD:
            return
        starting = member.state in (ActorState.STARTING, ActorState.STALE)
        lost = [one for one in self._members.remove(member) if one.left]
        prompts = [prompt for one in lost for prompt in one.left.values()]
        self._stats.add_death(member.name, kind, begin, prompts)
        self._deaths_since_ready += starting
        if self._deaths_since_ready > self.target:
            raise EngineError(f"{self._deaths_since_ready} rollout actors in a row did not come up; the last: {cause}")
        self._bound_deaths(cause)
        for one in lost:
            self._queue.requeue(list(one.left.values()), one.request.sampling, cause, stalled)
        self.grow()

    def _bound_deaths(self, cause: str) -> None:
        now = self._clock.now()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_SECONDS:
            self._deaths.popleft()
        if len(self._deaths) > DEATHS_OF_EACH * self.target:
            raise EngineError(
                f"{len(self._deaths)} rollout actors of a fleet of {self.target} died within "
                f"{DEATHS_SECONDS / 60:g} minutes; the last: {cause}"
            )

    def _on_started(self, call: PendingCall, _: None) -> None:
        member = call.member
        self._stats.add_call(member.name, call.kind, call.begin)
        self._members.move(member, ActorState.STALE)
        if self.weights is None:
            self._set_ready(member)
        else:
            self._pull(member, self.weights)

    def _pull_if_stale(self, member: Member) -> None:
        """Makes a stale actor pull the current weights, unless it has to finish requests or a pull first."""
        free = self._swap_in_flight or not member.requests
        if member.state is ActorState.STALE and free and not member.pulling and self.weights:
            self._pull(member, self.weights)

    def _pull(self, member: Member, weights: Weights) -> None:
        member.pulling = True
        send = partial(member.worker.pull, weights)
        self._calls.send(member, "weights", f"weights {weights.version}", send, partial(self._on_pulled, weights))

    def _on_pulled(self, weights: Weights, call: PendingCall, found: dict[str, int]) -> None:
        member = call.member
        differing = mismatch(weights.digests, found)
        if differing is not None:
            cause = f"{call.what}: the engine computes with others in {differing}"
            self.replace(member, call.kind, call.begin, cause)
            return
        self._stats.add_call(member.name, call.kind, call.begin)
        member.version, member.pulling = weights.version, False
        if member.state is not ActorState.STALE:
            return
        if weights is self.weights:
            self._set_ready(member)
        else:
            # Newer ones have come meanwhile; those between would be loaded for nothing.
            self._pull_if_stale(member)

    def _set_ready(self, member: Member) -> None:
        self._members.move(member, ActorState.READY)
        self._deaths_since_ready = 0
