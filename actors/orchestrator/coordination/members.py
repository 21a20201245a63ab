"""Keeps the rollout actors of a fleet, the states of their lives and their requests, and chooses the next one to get
prompts."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from actors.orchestrator.coordination.protocols import Worker
from actors.orchestrator.coordination.work_queue import GenerateRequest
from actors.types import Prompt

# Requests that an actor may have open. Few are whole: most have one or two long completions left.
MAX_OPEN_REQUESTS = 32


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

# DEAD leads nowhere: the actor that replaces a dead one starts anew and has to pull the weights before it is READY.
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


@dataclass(eq=False)
class OpenRequest:
    """A request that an actor is answering.

    Attributes:
        begin: when the actor got it.
        left: the prompts whose samples it has not handed over, by their place in the request.
        tokens: of the samples that it has handed over.
    """

    request: GenerateRequest
    begin: float
    left: dict[int, Prompt] = field(default_factory=dict)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.left = dict(enumerate(self.request.prompts))


@dataclass
class Member:
    """One rollout actor of the fleet.

    Attributes:
        number: counts the actors that were started, from 0.
        version: of its weights.
        requests: those that it is answering, oldest first.
        open_samples: completions that it was asked for and has not handed over.
        busy_since: while it answers requests, the time up to which this has been counted in the fleet's statistics.
        pulling: whether it has been asked to pull weights and has not answered.
    """

    number: int
    worker: Worker
    state: ActorState = ActorState.STARTING
    version: int = 0
    requests: list[OpenRequest] = field(default_factory=list)
    open_samples: int = 0
    busy_since: float = 0.0
    pulling: bool = False

    @property
    def name(self) -> str:
        """The actor's name in traces and messages."""
        return f"rollout {self.number}"

    @property
    def takes_requests(self) -> bool:
        """Whether it can be given another request, if it is not too large."""
        exclusive = any(open_request.request.exclusive for open_request in self.requests)
        return self.state is ActorState.READY and len(self.requests) < MAX_OPEN_REQUESTS and not exclusive


class AvailableMembers:
    """Orders the members that take requests by the completions that they have open; equal ones take turns."""

    def __init__(self) -> None:
        # The newest entry of a member counts; it has earlier ones until they come up.
        self._heap: list[tuple[int, int, Member]] = []
        self._entries: dict[int, int] = {}
        self._count = 0

    def update(self, member: Member) -> None:
        """Puts a member that has changed behind those with as many open completions, or takes it out."""
        self._entries.pop(member.number, None)
        if member.takes_requests:
            self._count += 1
            self._entries[member.number] = self._count
            heapq.heappush(self._heap, (member.open_samples, self._count, member))
        if len(self._heap) > 4 * len(self._entries) + 64:
            self._heap = [entry for entry in self._heap if self._is_newest(entry)]
            heapq.heapify(self._heap)

    def first(self) -> Member | None:
        """Returns the member that is to be given the next request, or None."""
        while self._heap and not self._is_newest(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def _is_newest(self, entry: tuple[int, int, Member]) -> bool:
        return self._entries.get(entry[2].number) == entry[1]


class Members:
    """The members that are not dead. Iterates over them in the order in which they were started."""

    def __init__(self) -> None:
        self.available = AvailableMembers()
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
        self.available.update(member)

    def remove(self, member: Member) -> list[OpenRequest]:
        """Kills a member and returns the requests that it was answering."""
        self.move(member, ActorState.DEAD)
        del self._members[member.number]
        member.worker.kill()
        requests, member.requests, member.open_samples = member.requests, [], 0
        return requests
