"""Calls a function many times side by side, each call with a deadline and retries."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from actors.functions.process import FunctionProcess
from actors.types import Failure, Verdict
from cluster.errors import DeadlineError, EngineError, StageError, UserError

# The most seconds for a process to import its function.
START_SECONDS = 300.0
# The most seconds that this takes in nearly all cases.
RESTART_SECONDS = 15.0
# An asynchronous call ends itself at its deadline; one that does not has blocked its process.
GRACE_SECONDS = 1.0
# Coroutines that one process runs at once.
COROUTINES = 64
# After so many late calls in a row, the calls that still wait are not made.
LATE_IN_A_ROW = 8
# How often in a row a process may end before it has started.
MAX_UNSTARTED = 3


@dataclass(frozen=True)
class CallLimits:
    """Limits of calls.

    Attributes:
        seconds: the most for one attempt.
        attempts: how often a call that fails is made in all.
        at_once: the most processes. A coroutine function has one, and more only for calls that are made alone.
    """

    seconds: float
    attempts: int
    at_once: int

    def longest(self, calls: int) -> float:
        """Returns the most seconds that a number of calls can take."""
        # One attempt more for a call that may have blocked a process, and a new process for each attempt.
        turns = -(-calls * (self.attempts + 1) // self.at_once) + LATE_IN_A_ROW
        return START_SECONDS + turns * (self.seconds + GRACE_SECONDS + RESTART_SECONDS)


@dataclass
class _Call:
    """One call.

    Attributes:
        index: its place in the arguments of `call_all`.
        failures: the number of failed attempts.
        alone: whether it must have a process to itself, since it may have blocked one.
    """

    index: int
    failures: int = 0
    alone: bool = False


@dataclass(frozen=True)
class _Running:
    """A call that has been sent to a process, and when it is late."""

    call: _Call
    process: FunctionProcess
    begin: float
    due: float


class FunctionCaller:
    """Calls one function in processes of its own.

    The first process starts at once. A plain function answers one call at a time in each; more processes start only
    while the calls that wait would take longer than a start. A process whose call is late is ended and replaced. If it
    had several calls in flight, each is repeated alone, which shows the one that blocked it.

    Args:
        name: module:function, which returns a number.
        what: the function's purpose, for messages.
        limits: of the calls.

    Raises:
        UserError: the function cannot be imported.
    """

    def __init__(self, name: str, what: str, limits: CallLimits) -> None:
        self.title, self.limits = f"{what} {name}", limits
        self._make = lambda: FunctionProcess(name, what)
        self._processes: list[FunctionProcess] = []
        begin = time.monotonic()
        self.asynchronous = self._started(self._make())
        self._start_seconds = time.monotonic() - begin

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
        self._processes.clear()

    def call_all(self, calls: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> list[Verdict]:
        """Makes calls and returns, in order, the number that each returned, or else its last failure.

        Args:
            calls: the arguments of each, as the child takes them.
            where: names a call in messages by its index, such as "for prompt 'a'".

        Raises:
            StageError: the function could be imported before and no longer can.
        """
        return _Round(self, calls, where).run()

    def _started(self, process: FunctionProcess) -> bool:
        try:
            asynchronous = process.ready.result(START_SECONDS)["asynchronous"]
        except TimeoutError as error:
            process.kill()
            raise DeadlineError(f"waited {START_SECONDS:.0f} s for {self.title} to be imported") from error
        except EngineError as error:
            raise UserError(f"{self.title} {error} while it was imported") from error
        self._processes.append(process)
        return asynchronous

    def free_process(self, alone: bool, waiting: int, call_seconds: float) -> FunctionProcess | None:
        """Returns a process that takes a call now, or None. May start another.

        Args:
            alone: whether no other call is to share the process.
            waiting: the number of calls that wait.
            call_seconds: the estimated seconds of a call; 0 where nothing is known.
        """
        places = COROUTINES if self.asynchronous and not alone else 1
        for process in self._processes:
            if process.takes_calls and len(process.in_flight) < (1 if process.exclusive else places):
                process.exclusive = alone
                return process
        most = 1 if self.asynchronous and not alone else self.limits.at_once
        backlog = waiting * call_seconds / max(1, len(self._processes))
        worth_it = not self._processes or (backlog > self._start_seconds and not self.starting())
        if len(self._processes) < most and worth_it:
            self._processes.append(self._make())
        return None

    def starting(self) -> list[Future[dict[str, bool]]]:
        """Returns the `ready` futures of the processes that are still starting."""
        return [process.ready for process in self._processes if not process.ready.done()]

    def drop_ended(self) -> list[str]:
        """Drops the processes that have ended; returns the errors of those that ended before they had started."""
        ended = [process for process in self._processes if process.ended]
        for process in ended:
            self.drop(process)
        return [str(error) for error in (process.ready.exception() for process in ended) if error]

    def drop(self, process: FunctionProcess) -> None:
        """Ends a process; another is started when it is needed."""
        process.kill()
        if process in self._processes:
            self._processes.remove(process)


class _Round:
    """The calls of one `call_all`."""

    def __init__(self, caller: FunctionCaller, calls: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> None:
        self.caller, self.limits = caller, caller.limits
        self.calls, self.where = calls, where
        self.found: dict[int, Verdict] = {}
        self.waiting = deque(_Call(index) for index in range(len(calls)))
        self.running: dict[Future[dict[str, Any]], _Running] = {}
        self.late_in_a_row = self.unstarted = 0
        self.seconds, self.done = 0.0, 0

    def run(self) -> list[Verdict]:
        while self.waiting or self.running:
            self._send()
            starting = self.caller.starting()
            awaited: list[Future[Any]] = [*self.running, *starting]
            wait(awaited, self._patience(bool(starting)), FIRST_COMPLETED)
            self._drop_ended()
            for answer in [answer for answer in self.running if answer.done()]:
                self._take(self.running.pop(answer), answer)
            self._end_late()
        return [self.found[index] for index in range(len(self.calls))]

    def _send(self) -> None:
        while self.waiting:
            process = self.caller.free_process(self.waiting[0].alone, len(self.waiting), self._call_seconds())
            if process is None:
                return
            call, now = self.waiting.popleft(), time.monotonic()
            answer = process.call(self.calls[call.index], self.limits.seconds)
            self.running[answer] = _Running(call, process, now, now + self.limits.seconds + self._grace)

    @property
    def _grace(self) -> float:
        return GRACE_SECONDS if self.caller.asynchronous else 0.0

    def _call_seconds(self) -> float:
        """Estimates the seconds of a call; before the first is done, from those that are running."""
        if self.done:
            return self.seconds / self.done
        return max((time.monotonic() - running.begin for running in self.running.values()), default=0.0)

    def _patience(self, starting: bool) -> float:
        if not self.running:
            return START_SECONDS
        patience = min(running.due for running in self.running.values()) - time.monotonic()
        # Soon after the start, whether more processes are worth it is looked at again.
        return max(0.0, min(patience, 0.05 if self.waiting and not starting else patience))

    def _drop_ended(self) -> None:
        for error in self.caller.drop_ended():
            self.unstarted += 1
            if self.unstarted > MAX_UNSTARTED:
                raise StageError(f"{self.caller.title} can no longer be imported: {error}")

    def _take(self, running: _Running, answer: Future[dict[str, Any]]) -> None:
        call = running.call
        error = answer.exception()
        if error is not None:
            self.caller.drop(running.process)
            if self.caller.asynchronous and not call.alone:
                self._repeat_alone(call)
            else:
                self._failed(call, str(error))
            return
        row = answer.result()
        self.seconds, self.done = self.seconds + time.monotonic() - running.begin, self.done + 1
        if row.get("late"):
            self._late(call)
        elif "failure" in row:
            self.late_in_a_row = 0
            self._failed(call, row["failure"])
        else:
            self.late_in_a_row = 0
            self.found[call.index] = row["value"]

    def _end_late(self) -> None:
        now = time.monotonic()
        for process in {running.process for running in self.running.values() if running.due <= now}:
            self.caller.drop(process)
            calls = [(answer, running.call) for answer, running in self.running.items() if running.process is process]
            for answer, call in calls:
                del self.running[answer]
                if len(calls) > 1:
                    self._repeat_alone(call)
                else:
                    self._late(call)

    def _repeat_alone(self, call: _Call) -> None:
        call.alone = True
        self.waiting.append(call)

    def _late(self, call: _Call) -> None:
        self.late_in_a_row += 1
        call.alone = True
        self._failed(call, f"took longer than {self.limits.seconds:g} s")
        if self.late_in_a_row >= LATE_IN_A_ROW:
            while self.waiting:
                self._end(self.waiting.popleft(), f"was not called: the last {LATE_IN_A_ROW} calls all took too long")

    def _failed(self, call: _Call, how: str) -> None:
        call.failures += 1
        if call.failures < self.limits.attempts:
            self.waiting.append(call)
        else:
            self._end(call, how)

    def _end(self, call: _Call, how: str) -> None:
        self.found[call.index] = Failure(f"{self.caller.title} {how}, {self.where(call.index)}")
