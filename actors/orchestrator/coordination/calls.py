"""Keeps the calls of actors that have not been answered, and finds those that are late."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.orchestrator.coordination.accounting import Kind
from actors.orchestrator.coordination.members import ActorState, Member
from actors.orchestrator.coordination.protocols import Callback, Clock


@dataclass(frozen=True, eq=False)
class Call:
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

    A start and a pull of weights have a deadline. A draw may take any time, but its actor has to report progress.

    Args:
        clock: tells the time.
        deadline: the most seconds for a start or a pull.
        stall: the most seconds without progress of an actor that draws.
        settle: does something that may free actors, and assigns what waits.
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
        on_error: Callable[[Call, BaseException], None],
    ) -> None:
        self._clock, self._deadline, self._stall = clock, deadline, stall
        self.last_progress = clock.now()
        self._settle, self._on_error = settle, on_error
        # All have the same time, so that the oldest is the first that can be late.
        self._timed: OrderedDict[Call, float] = OrderedDict()
        self._drawing: OrderedDict[int, tuple[Member, float]] = OrderedDict()

    def send(
        self,
        member: Member,
        kind: Kind,
        what: str,
        send: Callable[[Callback], None],
        on_success: Callable[[Call, Any], None],
    ) -> Call:
        """Sends a call to an actor and returns it."""
        call = Call(member, kind, what, self._clock.now())
        if kind != "draw":
            self._timed[call] = call.begin + self._deadline
        send(partial(self._on_answer, call, on_success))
        return call

    def watch(self, member: Member) -> None:
        """Expects progress of an actor that has got a request; another request gives it no more time."""
        self._drawing.setdefault(member.number, (member, self._clock.now() + self._stall))

    def note_progress(self, member: Member) -> None:
        """Records that an actor has reported progress; one without requests is no longer watched."""
        self.last_progress = self._clock.now()
        self._drawing.pop(member.number, None)
        if member.requests:
            self.watch(member)

    def next_due(self, end: float) -> float:
        """Returns when the next call may be late, at most `end`."""
        timed, drawing = next(iter(self._timed.values()), end), next(iter(self._drawing.values()), (None, end))[1]
        return min(end, timed, drawing)

    def take_late(self) -> Iterator[tuple[Member, Kind, str, float]]:
        """Removes and yields the late ones: actor, kind of the call, why it is given up, and when the call began."""
        now = self._clock.now()
        while self._timed and next(iter(self._timed.values())) <= now:
            call, _ = self._timed.popitem(last=False)
            if call.member.state is not ActorState.DEAD:
                why = f"{call.what}: no answer within {self._deadline:.0f} s"
                yield call.member, call.kind, why, call.begin
        while self._drawing and next(iter(self._drawing.values()))[1] <= now:
            _, (member, _) = self._drawing.popitem(last=False)
            if member.state is ActorState.DEAD or not member.requests:
                continue
            oldest = member.requests[0]
            why = f"{oldest.request}: no progress for {self._stall:.0f} s"
            yield member, "draw", why, oldest.begin

    def _on_answer(
        self, call: Call, on_success: Callable[[Call, Any], None], value: Any, error: BaseException | None
    ) -> None:
        answered = call.kind == "draw" or self._timed.pop(call, None) is not None
        if not answered or call.member.state is ActorState.DEAD:
            return
        if error is None:
            self._settle(partial(on_success, call, value))
        else:
            self._on_error(call, error)
