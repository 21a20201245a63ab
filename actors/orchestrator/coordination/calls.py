"""Keeps the calls of actors that have not been answered, and finds those that are late."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.orchestrator.coordination.accounting import Kind
from actors.orchestrator.coordination.members import ActorState, Member
from actors.orchestrator.coordination.protocols import Callback, Clock
from actors.orchestrator.coordination.work_queue import MAX_PATIENCE

# Where so many seconds lie between two looks for late actors, this process did not run meanwhile, such as on a machine
# that was paused: answers of that time may still wait to be read.
PAUSE_SECONDS = 5.0
# An actor may be without progress for so many times the longest time that any was and went on ...
SLOWEST_FACTOR = 2
# ... within so many seconds.
SLOWEST_SECONDS = 600.0


@dataclass(frozen=True, eq=False)
class PendingCall:
    """A call of an actor that has not been answered.

    Attributes:
        what: the call in words, for messages.
    """

    member: Member
    kind: Kind
    what: str
    begin: float


class Calls:
    """Sends calls to actors and passes their answers on; the answer of an actor that is given up is dropped.

    A start and a pull of weights have a deadline. A draw may take any time, but its actor has to report progress. How
    long it may be without adapts to the machine, as timeouts of retransmission do (RFC 6298): on a loaded one, engines
    that are ended and started again only add to the load.

    Args:
        clock: tells the time.
        deadline: the most seconds for a start or a pull.
        stall: the most seconds without progress of an actor that draws.
        settle: runs an action that may free actors, then gives them the requests that wait.
        on_error: is given each call that failed, and its error.

    Attributes:
        last_progress: when an actor last reported progress.
    """

    def __init__(
        self,
        clock: Clock,
        deadline: float,
        stall: float,
        settle: Callable[[Callable[[], None]], None],
        on_error: Callable[[PendingCall, BaseException], None],
    ) -> None:
        self._clock, self._deadline, self._stall = clock, deadline, stall
        self.last_progress = clock.now()
        self._settle, self._on_error = settle, on_error
        # All have the same time, so that the oldest is the first that can be late.
        self._timed: OrderedDict[PendingCall, float] = OrderedDict()
        # For each patience, the actors that draw and since when they have made no progress, the longest first.
        self._drawing: dict[int, OrderedDict[int, tuple[Member, float]]] = {}
        self._looked = clock.now()
        # The longest time that an actor was without progress of late, and when it ended.
        self._slowest, self._slowest_at = 0.0, clock.now()

    @property
    def longest_wait(self) -> float:
        """The most seconds that anything may take now without progress."""
        return max([self._deadline, *map(self._allowance, self._drawing)])

    def send(
        self,
        member: Member,
        kind: Kind,
        what: str,
        send: Callable[[Callback], None],
        on_success: Callable[[PendingCall, Any], None],
    ) -> PendingCall:
        """Sends a call to an actor and returns it."""
        call = PendingCall(member, kind, what, self._clock.now())
        if kind != "draw":
            self._timed[call] = call.begin + self._deadline
        send(partial(self._on_answer, call, on_success))
        return call

    def watch(self, member: Member) -> None:
        """Expects progress of an actor that has got a request; another request gives it no more time."""
        if not any(member.number in drawing for drawing in self._drawing.values()):
            patience = max(opened.request.patience for opened in member.requests)
            self._drawing.setdefault(patience, OrderedDict())[member.number] = member, self._clock.now()

    def note_progress(self, member: Member) -> None:
        """Records that an actor has reported progress; one without requests is no longer watched."""
        self.last_progress = self._clock.now()
        for drawing in self._drawing.values():
            if found := drawing.pop(member.number, None):
                self._note_pause(self.last_progress - found[1])
        if member.requests:
            self.watch(member)

    def next_due(self, end: float) -> float:
        """Returns when the next call may be late, at most `end`."""
        return min([end, *self._first_due()])

    def take_late(self) -> Iterator[tuple[Member, Kind, str, float]]:
        """Removes and yields the late ones: actor, kind of the call, why it is given up, and when the call began."""
        now = self._clock.now()
        if now - self._looked > PAUSE_SECONDS:
            self._postpone(now - self._looked)
        self._looked = now
        while self._timed and next(iter(self._timed.values())) <= now:
            call, _ = self._timed.popitem(last=False)
            if call.member.state is not ActorState.DEAD:
                why = f"{call.what}: no answer within {self._deadline:.0f} s"
                yield call.member, call.kind, why, call.begin
        # A copy: an actor that is given up may free others, which are then watched.
        for patience, drawing in list(self._drawing.items()):
            allowance = self._allowance(patience)
            while drawing and next(iter(drawing.values()))[1] + allowance <= now:
                _, (member, since) = drawing.popitem(last=False)
                if member.state is ActorState.DEAD or not member.requests:
                    continue
                if self.last_progress <= (since + now) / 2:
                    # None of the others did anything of late either: the machine is slow rather than this engine stuck.
                    self._note_pause(now - since)
                oldest = member.requests[0]
                yield member, "draw", f"{oldest.request}: no progress for {now - since:.0f} s", oldest.begin

    def _allowance(self, patience: int) -> float:
        """Returns the most seconds without progress of an actor with requests of that patience."""
        recent = self._clock.now() - self._slowest_at < SLOWEST_SECONDS
        slowest = SLOWEST_FACTOR * self._slowest * recent
        return min(MAX_PATIENCE * self._stall, max(patience * self._stall, slowest))

    def _note_pause(self, seconds: float) -> None:
        """Records that an actor was without progress for so many seconds."""
        now = self._clock.now()
        if seconds >= self._slowest or now - self._slowest_at >= SLOWEST_SECONDS:
            self._slowest, self._slowest_at = seconds, now

    def _first_due(self) -> Iterator[float]:
        yield from list(self._timed.values())[:1]
        for patience, drawing in self._drawing.items():
            if drawing:
                yield next(iter(drawing.values()))[1] + self._allowance(patience)

    def _postpone(self, seconds: float) -> None:
        """Postpones all deadlines by some seconds."""
        self.last_progress += seconds
        for call in self._timed:
            self._timed[call] += seconds
        for drawing in self._drawing.values():
            for number, (member, since) in drawing.items():
                drawing[number] = member, since + seconds

    def _on_answer(
        self, call: PendingCall, on_success: Callable[[PendingCall, Any], None], value: Any, error: BaseException | None
    ) -> None:
        answered = call.kind == "draw" or self._timed.pop(call, None) is not None
        if not answered or call.member.state is ActorState.DEAD:
            return
        if error is None:
            self._settle(partial(on_success, call, value))
        else:
            self._on_error(call, error)
