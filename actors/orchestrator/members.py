"""The rollout actors of a fleet as the coordinator keeps them, and which of them take prompts."""

from collections import OrderedDict
from dataclasses import dataclass, field

from actors.orchestrator.protocols import Worker
from actors.orchestrator.work_queue import ActorState, GenerateRequest

# The engine draws what an actor is given next beside the last answers of what it was given before: when these are long,
# most of its places would be empty.
CHUNKS_AT_ONCE = 2


@dataclass
class Member:
    """A rollout actor.

    Attributes:
        version: of its weights.
        chunks: the prompts that it is at.
        booked: until when its time at prompts is in the books, while it is at any.
        pulling: whether it has been asked to take weights.
    """

    number: int
    worker: Worker
    state: ActorState = ActorState.STARTING
    version: int = 0
    chunks: list[GenerateRequest] = field(default_factory=list)
    booked: float = 0.0
    pulling: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"rollout {self.number}"

    @property
    def takes_more(self) -> bool:
        """Whether it can be given prompts."""
        alone = any(chunk.alone for chunk in self.chunks)
        return self.state is ActorState.READY and len(self.chunks) < CHUNKS_AT_ONCE and not alone


class IdleQueue:
    """Members that take more prompts: first those that are at none, and in turn."""

    def __init__(self) -> None:
        self._idle: OrderedDict[int, Member] = OrderedDict()
        self._at_work: OrderedDict[int, Member] = OrderedDict()

    def place(self, member: Member) -> None:
        """Puts a member that has changed where it belongs."""
        self._idle.pop(member.number, None)
        self._at_work.pop(member.number, None)
        if member.takes_more:
            (self._at_work if member.chunks else self._idle)[member.number] = member

    def next(self) -> Member | None:
        """Who is to be given prompts next."""
        return next(iter((self._idle or self._at_work).values()), None)
