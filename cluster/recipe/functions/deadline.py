"""Calls a user's function in this process with a deadline, and says in one line how it failed."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")
T = TypeVar("T")

# The most seconds for an exam, or for a source's next row or text: they may have to fetch a data set first.
SOURCE_SECONDS = 1800.0
REASON_CHARACTERS = 300
# A function that catches everything is interrupted again after so many seconds.
AGAIN_SECONDS = 1.0
# Exit codes by which SIGTERM ends a process of Ray's, or the command: these ends are not the function's own.
SIGNAL_CODES = (signal.SIGTERM, 128 + signal.SIGTERM)


class LateError(Exception):
    """A call that did not return by its deadline."""


class ExitCalledError(Exception):
    """A call of sys.exit by a function, which would end the command, and as a success if it passes 0."""


class _Interrupt(BaseException):
    """Ends a call from a signal handler; no `except Exception` of the function stops it."""


def call_within(seconds: float, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function and returns its value.

    In the main thread a timer interrupts the function, also within a regular expression, a sleep or a read. Elsewhere,
    and on systems without such timers, the function runs in a thread of its own, which is left behind if it is late.

    Args:
        seconds: the most that the call may take.
        function: a user's function, which may raise anything.
        arguments: the arguments of the call.

    Raises:
        LateError: it took longer.
        ExitCalledError: it called sys.exit.
    """
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    try:
        return (_interrupted if in_main else _in_thread)(seconds, function, arguments)
    except SystemExit as error:
        if error.code in SIGNAL_CODES:
            raise
        raise ExitCalledError(f"called sys.exit({error.code!r}), and must return instead") from error


def items_within(seconds: float, function: Callable[[], Iterable[T]]) -> Iterator[T]:
    """Calls a function that returns items, and yields them; the call and each item may take so many seconds.

    Raises:
        LateError: an item took longer.
    """
    iterator, end = call_within(seconds, lambda: iter(function())), object()
    while True:
        item: Any = call_within(seconds, next, iterator, end)
        if item is end:
            return
        yield item


def in_order(function: Callable[[Item], T], items: Iterable[Item], at_once: int) -> Iterator[T]:
    """Calls a function for each item, and yields the results in the order of the items.

    Args:
        function: raises nothing: a failure is a result.
        items: its arguments.
        at_once: how many calls run side by side, each in a thread of its own; with 1 they run in this thread.
    """
    waiting = deque[Future[T]]()
    for item in items:
        if at_once == 1:
            yield function(item)
            continue
        if len(waiting) == at_once:
            yield waiting.popleft().result()
        waiting.append(_started(function, item))
    while waiting:
        yield waiting.popleft().result()


def failure_reason(error: BaseException) -> str:
    """Says in one line how a user's function failed, to follow its name."""
    try:
        text = str(error)
    # The exception is the user's own, and may fail too.
    except Exception:  # noqa: BLE001
        text = "(an exception without words)"
    return one_line(
        text if isinstance(error, LateError | ExitCalledError) else f"raised {type(error).__name__}: {text}"
    )


def one_line(text: str) -> str:
    """Returns a text on one line, cut to `REASON_CHARACTERS`."""
    # A lone surrogate cannot be written into any log.
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:REASON_CHARACTERS]


def _interrupted(seconds: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise _Interrupt

    begin, handler = time.monotonic(), signal.signal(signal.SIGALRM, interrupt)
    earlier, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        try:
            return function(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Interrupt:
        # The interrupt may have come before the inner `finally` stopped the timer.
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise LateError(f"took longer than {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGALRM, handler)
        if earlier:
            left = earlier - (time.monotonic() - begin)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001), interval)


def _in_thread(seconds: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    answer = _started(function, *arguments)
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise LateError(f"took longer than {seconds:g} s") from None


def _started(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Starts a call in a thread that does not keep the process alive, and returns its future value."""
    answer: Future[T] = Future()

    def call() -> None:
        try:
            answer.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001
            answer.set_exception(error)

    threading.Thread(target=call, name="a user's function", daemon=True).start()
    return answer
