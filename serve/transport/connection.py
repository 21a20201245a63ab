"""The way of requests to a replica and of its answers back: a connection on which they all share frames.

Ray Serve says which replicas there are. It would carry requests and streams too, at some 2 ms of CPU for a request and
1 ms for every token in each process; a frame here costs a hundredth of that.
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

from serve.transport.frames import Kind, Wire, decoded, encoded
from serve.transport.messages import Endpoint, Part

logger = logging.getLogger("ray.serve")

_SECRET_BYTES = 32
_NAME_BYTES = 16


class End:
    """There are no more parts."""


class RequestFailed(Exception):
    """A request failed in the replica, which goes on with the others."""


Item = Part | End | Exception


def new_name() -> bytes:
    """What a replica is known by on its connections."""
    return secrets.token_bytes(_NAME_BYTES)


@dataclass(frozen=True)
class Address:
    """Where a gateway waits for the replicas of a deployment, and the secret that they are known by."""

    host: str
    port: int
    secret: bytes


class ReplicaListener:
    """Where replicas connect to a gateway."""

    def __init__(self) -> None:
        self._takers: dict[bytes, Callable[[GatewayConnection], None]] = {}
        self._lines: set[GatewayConnection] = set()

    async def open(self, host: str) -> None:
        """Begins to listen at an address of this machine."""
        server = await asyncio.get_running_loop().create_server(lambda: GatewayConnection(self._arrived), host, 0)
        self._host, self._port = host, server.sockets[0].getsockname()[1]

    def address(self, take: Callable[["GatewayConnection"], None]) -> Address:
        """What the replicas of one deployment have to know; each connection that they make is handed over."""
        secret = secrets.token_bytes(_SECRET_BYTES)
        self._takers[secret] = take
        return Address(self._host, self._port, secret)

    def close(self) -> None:
        """Ends all connections."""
        for line in self._lines:
            line.close()

    def _arrived(self, secret: bytes, line: "GatewayConnection") -> None:
        take = self._takers.get(secret)
        if take is None:
            line.close()
            return
        self._lines = {one for one in self._lines if not one.lost} | {line}
        take(line)


class GatewayConnection(Wire):
    """The gateway's end of a connection. Until the other has sent a secret, nothing that it says is heard.

    Attributes:
        replica: the name of the replica at the other end.
        leaving: whether that replica answers no more than what it has been asked.
    """

    replica: bytes

    def __init__(self, arrived: Callable[[bytes, "GatewayConnection"], None]) -> None:
        super().__init__()
        self.leaving = False
        self._arrived, self._known = arrived, False
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[Item]] = {}

    @property
    def ready(self) -> bool:
        """Whether it may be asked."""
        return not (self.lost or self.leaving)

    @property
    def requests(self) -> int:
        """How many wait for their answer's end."""
        return len(self._waiting)

    def data_received(self, data: bytes) -> None:
        if self._known:
            super().data_received(data)
            return
        self._came += data
        hello = _SECRET_BYTES + _NAME_BYTES
        if len(self._came) >= hello:
            secret, rest = bytes(self._came[:_SECRET_BYTES]), bytes(self._came[hello:])
            self.replica = bytes(self._came[_SECRET_BYTES:hello])
            self._came.clear()
            self._arrived(secret, self)
            self._known = not self.transport.is_closing()
            if self._known:
                super().data_received(rest)

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.LEAVING:
            self.leaving = True
            return
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
    def asking(self, model: str, endpoint: Endpoint, body: dict[str, Any]) -> Iterator["asyncio.Queue[Item]"]:
        """Sends a request, and gives the queue that its answer's parts go into. Leaving it before the end has the
        request given up.

        Raises:
            ConnectionError: the replica is gone.
        """
        number, queue = next(self._numbers), asyncio.Queue[Item]()
        self.send(number, Kind.REQUEST, json.dumps([model, endpoint, body]).encode())
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


Answers = Callable[[str, Endpoint, dict[str, Any]], AsyncGenerator[Part]]


async def connect(address: Address, name: bytes, answers: Answers) -> "ReplicaConnection":
    """Connects a replica to a gateway, and answers what it asks from then on.

    Args:
        name: the replica's.
        answers: the parts of a model's answer to a request, as `serve.replica.replica.Served.answer`.

    Raises:
        OSError: the gateway does not answer.
    """
    loop = asyncio.get_running_loop()
    _, counter = await loop.create_connection(partial(ReplicaConnection, answers), address.host, address.port)
    counter.transport.write(address.secret + name)
    return counter


class ReplicaConnection(Wire):
    """The replica's end of a connection."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def leave(self) -> None:
        """Has the gateway ask no more, and ends the connection when everything is answered."""
        if not self.lost:
            self.send(0, Kind.LEAVING)
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        if not self.lost:
            self.close()

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.REQUEST:
            task = self._tasks[number] = asyncio.create_task(self._answer(number, payload))
            task.add_done_callback(partial(self._answered, number))
        elif number in self._tasks:
            self._tasks[number].cancel()

    async def _answer(self, number: int, payload: bytes) -> None:
        model, endpoint, body = json.loads(payload)
        async with aclosing(self._answers(model, endpoint, body)) as parts:
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
