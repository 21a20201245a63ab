"""Calls a user's coroutine function from any thread, with a deadline: many calls at once run on one event loop."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.recipe.functions.deadline import LateError

# A call ends itself at its deadline; one that does not within so many seconds more has blocked the loop.
GRACE_SECONDS = 1.0
# How often a call is made that others have blocked.
ATTEMPTS = 3
THREAD = "a user's coroutine function"


class CoroutineCaller:
    """Awaits the calls of one coroutine function on an event loop in a thread of its own, which ends with this object.

    All calls share the loop, so that a client which the function keeps, such as one of a server, can be used by all. A
    call that blocks the loop is late; the others go on in another loop, and the blocked thread is left behind.

    Args:
        function: a user's coroutine function, which may raise anything.
    """

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], Any] = lambda: None
        self._blocking: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()

    def call(self, seconds: float, *arguments: Any) -> Any:
        """Awaits a call and returns its value. Any thread may call this, except that of the loop.

        Args:
            seconds: the most that the call may take; it is canceled then.
            arguments: the arguments of the call.

        Raises:
            LateError: it took longer, or others blocked each of its attempts.
        """
        for _ in range(ATTEMPTS):
            loop, tasks = self._running(), list[asyncio.Task[Any]]()
            awaited = self._awaited(seconds, arguments, tasks)
            found = asyncio.run_coroutine_threadsafe(awaited, loop)
            try:
                return found.result(seconds + GRACE_SECONDS)
            except TimeoutError:
                if found.done():
                    raise
            if self._is_to_blame(loop, tasks):
                found.cancel()
                break
            if not tasks:
                # The loop that another call blocks has not begun this one, and is not to.
                awaited.close()
        raise LateError(f"took longer than {seconds:g} s")

    async def _awaited(self, seconds: float, arguments: tuple[Any, ...], tasks: list[asyncio.Task[Any]]) -> Any:
        if task := asyncio.current_task():
            tasks.append(task)
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._function(*arguments)
        except TimeoutError:
            # The function may raise one of its own.
            if limit.expired():
                raise LateError(f"took longer than {seconds:g} s") from None
            raise

    def _is_to_blame(self, loop: asyncio.AbstractEventLoop, tasks: list[asyncio.Task[Any]]) -> bool:
        """Tells whether a call that is late in spite of its own deadline is so by itself, and not because another one
        blocks the loop, which is left behind if one does."""
        with self._lock:
            if self._loop is not loop:
                # Another call has found out which one blocks it.
                return any(task in self._blocking for task in tasks)
            blocking = asyncio.current_task(loop)
            if blocking is not None:
                self._blocking.add(blocking)
                self._loop = None
                self._stop()
            return blocking is None or blocking in tasks

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # The calls of a loop that is left behind are made in another.
                self._loop.set_exception_handler(lambda *_: None)
                threading.Thread(target=_run, args=(self._loop,), name=THREAD, daemon=True).start()
                self._stop = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
