"""Keeps the rollout actors of a fleet: the states of their lives, what each is doing, and which takes prompts next."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from actors.orchestrator.protocols import Worker
from actors.orchestrator.work_queue import GenerateRequest

# An engine decodes a second request together with the last long completions of the first: with one at a time, most of
# its places would be empty then.
REQUESTS_AT_ONCE = 2


class ActorState(StrEnum):
    """The states of a rollout actor: STALE lacks the current weights, READY draws with them, DRAINING finishes its
    requests and ends."""

    STARTING = "starting"
    STALE = "stale"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


# Actors that have started and stay.
WORKING = {ActorState.READY, ActorState.STALE}

# DEAD leads nowhere: what replaces a dead actor starts anew and has to pull the current weights before it is READY.
_NEXT = {
    ActorState.STARTING: {ActorState.STALE, ActorState.DEAD},
    ActorState.STALE: {ActorState.READY, ActorState.DRAINING, ActorState.DEAD},
    ActorState.READY: {ActorState.STALE, ActorState.DRAINING, ActorState.DEAD},
    ActorState.DRAINING: {ActorState.DEAD},
    ActorState.DEAD: set[ActorState](),
}


def advance(state: ActorState, to: ActorState) -> ActorState:
    """Returns the new state.

    Raises:
        ValueError: an actor may not go from the one state to the other.
    """
    if to not in _NEXT[state]:
        raise ValueError(f"a rollout actor cannot go from {state} to {to}")
    return to


@dataclass
class Member:
    """One rollout actor of the fleet.

    Attributes:
        number: counts the actors that were started, from 0.
        version: of its weights.
        requests: the requests that it is answering.
        busy_since: while it answers requests, the time up to which this has been counted in the fleet's statistics.
        pulling: whether it has been asked to pull weights and has not answered.
    """

    number: int
    worker: Worker
    state: ActorState = ActorState.STARTING
    version: int = 0
    requests: list[GenerateRequest] = field(default_factory=list)
    busy_since: float = 0.0
    pulling: bool = False

    @property
    def name(self) -> str:
        """The actor's name in traces and messages."""
        return f"rollout {self.number}"

    @property
    def takes_requests(self) -> bool:
        """Whether it can be given another request."""
        exclusive = any(request.exclusive for request in self.requests)
        return self.state is ActorState.READY and len(self.requests) < REQUESTS_AT_ONCE and not exclusive


class IdleQueue:
    """Orders the members that take requests: those without any first, and each in its turn."""

    def __init__(self) -> None:
        self._idle: OrderedDict[int, Member] = OrderedDict()
        self._busy: OrderedDict[int, Member] = OrderedDict()

    def update(self, member: Member) -> None:
        """Moves a member that has changed to the end of the queue that it now belongs to, or out of both."""
        self._idle.pop(member.number, None)
        self._busy.pop(member.number, None)
        if member.takes_requests:
            (self._busy if member.requests else self._idle)[member.number] = member

    def first(self) -> Member | None:
        """Returns the member that is to be given the next request, or None."""
        return next(iter((self._idle or self._busy).values()), None)


class Members:
    """The members that are not dead. Iterates over them in the order in which they were started."""

    def __init__(self) -> None:
        self.idle = IdleQueue()
        self._members: dict[int, Member] = {}
        self._counts: Counter[ActorState] = Counter()
        self._added = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    @property
    def next_number(self) -> int:
        """The number that the next member will have."""
        return self._added

    def count(self, *states: ActorState) -> int:
        """Returns the number of members in these states."""
        return sum(self._counts[state] for state in states)

    def add(self, worker: Worker) -> Member:
        """Adds a member that is starting."""
        member = Member(self._added, worker)
        self._added += 1
        self._members[member.number] = member
        self._counts[member.state] += 1
        return member

    def move(self, member: Member, to: ActorState) -> None:
        """Changes a member's state. Raises as `advance` does."""
        self._counts[member.state] -= 1
        member.state = advance(member.state, to)
        if to is not ActorState.DEAD:
            self._counts[to] += 1
        self.idle.update(member)

    def remove(self, member: Member) -> list[GenerateRequest]:
        """Kills a member and returns the requests that it was answering."""
        self.move(member, ActorState.DEAD)
        del self._members[member.number]
        member.worker.kill()
        requests, member.requests = member.requests, []
        return requests
