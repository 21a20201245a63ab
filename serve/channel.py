"""The way of requests to a model and of its answers back: a connection on which they all share frames.

Ray Serve says which replica has the model and when it is gone. It would carry requests and streams too, at some 2 ms of
CPU for a request and 1 ms for every token in each process; a frame here costs a hundredth of that.
"""

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve.parts import Endpoint, Part
from serve.wire import Kind, Wire, decoded, encoded

logger = logging.getLogger("ray.serve")

_HELLO_BYTES = 32


class End:
    """There are no more parts."""


class RequestFailed(Exception):
    """A request failed in the replica, which goes on with the others."""


Item = Part | End | Exception


@dataclass(frozen=True)
class Address:
    """Where a gateway waits for one connection, and the secret that it is known by."""

    host: str
    port: int
    secret: bytes


class Inbox:
    """Where replicas connect to a gateway."""

    def __init__(self) -> None:
        self._expected: dict[bytes, asyncio.Future[Line]] = {}
        self._lines: set[Line] = set()

    async def open(self, host: str) -> None:
        """Begins to listen at an address of this machine."""
        server = await asyncio.get_running_loop().create_server(lambda: Line(self._arrived), host, 0)
        self._host, self._port = host, server.sockets[0].getsockname()[1]

    @contextmanager
    def expecting(self) -> Iterator[tuple[Address, "asyncio.Future[Line]"]]:
        """What a replica has to know, and the connection once it has made it, while the context lasts."""
        secret, line = secrets.token_bytes(_HELLO_BYTES), asyncio.get_running_loop().create_future()
        self._expected[secret] = line
        try:
            yield Address(self._host, self._port, secret), line
        finally:
            del self._expected[secret]
            line.cancel()

    def close(self) -> None:
        """Ends all connections."""
        for line in self._lines:
            line.close()

    def _arrived(self, secret: bytes, line: "Line") -> None:
        expected = self._expected.get(secret)
        if expected is None or expected.done():
            line.close()
            return
        self._lines = {one for one in self._lines if not one.lost} | {line}
        expected.set_result(line)


class Line(Wire):
    """The gateway's end of a connection. Until the other has sent a secret, nothing that it says is heard."""

    def __init__(self, arrived: Callable[[bytes, "Line"], None]) -> None:
        super().__init__()
        self._arrived, self._known = arrived, False
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[Item]] = {}

    def data_received(self, data: bytes) -> None:
        if self._known:
            super().data_received(data)
            return
        self._came += data
        if len(self._came) >= _HELLO_BYTES:
            secret, rest = bytes(self._came[:_HELLO_BYTES]), bytes(self._came[_HELLO_BYTES:])
            self._came.clear()
            self._arrived(secret, self)
            self._known = not self.transport.is_closing()
            if self._known:
                super().data_received(rest)

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        queue = self._waiting.get(number)
        if queue is None:
            return
        if kind is Kind.FAILED:
            queue.put_nowait(RequestFailed("the replica's log says why"))
        elif kind is not Kind.END:
            queue.put_nowait(decoded(kind, payload))
        # A whole answer is all there is.
        if kind in (Kind.END, Kind.FAILED, Kind.REPLY):
            queue.put_nowait(End())
            del self._waiting[number]

    @contextmanager
    def asking(self, endpoint: Endpoint, body: dict[str, Any]) -> Iterator["asyncio.Queue[Item]"]:
        """Sends a request, and gives the queue that its answer's parts go into. Leaving it before the end has the
        request given up.

        Raises:
            ConnectionError: the replica is gone.
        """
        number, queue = next(self._numbers), asyncio.Queue[Item]()
        self.send(number, Kind.REQUEST, json.dumps([endpoint, body]).encode())
        self._waiting[number] = queue
        try:
            yield queue
        finally:
            if self._waiting.pop(number, None) and not self.lost:
                self.send(number, Kind.CANCEL)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for queue in self._waiting.values():
            queue.put_nowait(ConnectionError("the replica's connection broke"))
        self._waiting.clear()


Answers = Callable[[Endpoint, dict[str, Any]], AsyncGenerator[Part]]


async def attend(address: Address, answers: Answers) -> None:
    """A replica's end: connects to a gateway and answers what it asks, until the connection ends.

    Args:
        answers: the parts of the answer to a request, as `serve.replica.Served.answer`.

    Raises:
        OSError: the gateway does not answer.
    """
    loop = asyncio.get_running_loop()
    _, counter = await loop.create_connection(partial(_Counter, answers), address.host, address.port)
    counter.transport.write(address.secret)
    try:
        await counter.ended
    finally:
        counter.close()


class _Counter(Wire):
    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.ended = self._loop.create_future()
        self._answers = answers
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.REQUEST:
            task = self._tasks[number] = asyncio.create_task(self._answer(number, payload))
            task.add_done_callback(partial(self._answered, number))
        elif number in self._tasks:
            self._tasks[number].cancel()

    async def _answer(self, number: int, payload: bytes) -> None:
        endpoint, body = json.loads(payload)
        async with aclosing(self._answers(endpoint, body)) as parts:
            async for part in parts:
                self.send(number, *encoded(part))
        self.send(number, Kind.END)

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        if not task.cancelled() and (failure := task.exception()) and not self.lost:
            logger.error("a request failed", exc_info=failure)
            self.send(number, Kind.FAILED)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for task in self._tasks.values():
            task.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
