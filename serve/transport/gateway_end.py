"""The gateway's end of its connections to replicas, each of which all requests to that replica share.

Ray Serve keeps track of the replicas. A Ray Serve handle could carry requests and streams too, but a token costs the
gateway 0.364 ms of CPU by a handle, 0.141 ms by Serve's gRPC, and 0.015 ms by a frame here.

The replica connects to the gateway and identifies itself with the deployment's secret. From then on the gateway sends
requests, and the replica sends the parts of the responses. A response that its client does not read is held up in the
replica, by `PAUSE` and `RESUME`, while the others go on.
"""

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serve.transport.frames import FrameProtocol, Kind, decode
from serve.transport.messages import Endpoint, Part, Usage
from serve.transport.tls import gateway_context

logger = logging.getLogger("ray.serve")

# The most seconds for a replica to stop working on a request, which the engine does between two steps.
CANCEL_SECONDS = 5.0
# The most seconds for a replica to send its secret after it has connected, and the most connections without one.
GREETING_SECONDS = 5.0
MAX_GREETINGS = 64
# The bytes of a response that wait for its client: above the first the replica is told to pause, below the second to go
# on. A token's event has some 300.
PAUSE_BYTES, RESUME_BYTES = 256 << 10, 64 << 10
# The bytes that an item takes besides its text.
_ITEM_BYTES = 128
_SECRET_BYTES = 32
_ID_BYTES = 16


class End:
    """Marks the end of a response."""


class RequestFailed(Exception):
    """A request failed in the replica, which continues with the others."""


Item = Part | End | Exception


class ResponseStream(asyncio.Queue[Item]):
    """The parts of a response as they come.

    Args:
        number: the number of the request on its connection.
        send: sends `PAUSE` and `RESUME` to the replica.

    Attributes:
        number: the number of the request on its connection.
        cancelled: a task with the tokens that the replica had computed when the request was cancelled, or None if it
            does not report them in time; None if the request was not cancelled.
    """

    def __init__(self, number: int, send: Callable[[int, Kind], None]) -> None:
        super().__init__()
        self.number, self._send = number, send
        self.cancelled: asyncio.Task[Usage | None] | None = None
        self._bytes, self._paused = 0, False

    def _put(self, item: Item) -> None:
        super()._put(item)
        self._bytes += _size(item)
        if not self._paused and self._bytes > PAUSE_BYTES:
            self._paused = True
            self._send(self.number, Kind.PAUSE)

    def _get(self) -> Item:
        item: Item = super()._get()
        self._bytes -= _size(item)
        if self._paused and self._bytes < RESUME_BYTES:
            self._paused = False
            self._send(self.number, Kind.RESUME)
        return item


def _size(item: Item) -> int:
    return _ITEM_BYTES + (len(item) if isinstance(item, str) else 0)


def new_replica_id() -> bytes:
    """Returns a random identifier for a replica, which it sends on each of its connections."""
    return secrets.token_bytes(_ID_BYTES)


@dataclass(frozen=True)
class Address:
    """The address on which a gateway accepts the replicas of one deployment, and the secret that admits them."""

    host: str
    port: int
    secret: bytes


class ReplicaListener:
    """The gateway's server socket for replicas."""

    def __init__(self) -> None:
        self._callbacks: dict[bytes, Callable[[GatewayConnection], None]] = {}
        self._greeting: set[GatewayConnection] = set()
        self._connections: set[GatewayConnection] = set()

    async def open(self, host: str) -> None:
        """Starts to listen on an address of this machine, on a free port.

        Raises:
            UserError: Ray uses TLS, and its files cannot be used.
        """
        encryption = gateway_context()
        server = await asyncio.get_running_loop().create_server(
            lambda: GatewayConnection(self._identified, self._greeting),
            host,
            0,
            ssl=encryption,
            ssl_handshake_timeout=GREETING_SECONDS if encryption else None,
        )
        self._host, self._port = host, server.sockets[0].getsockname()[1]

    def address(self, on_connect: Callable[["GatewayConnection"], None]) -> Address:
        """Returns the address for the replicas of one deployment; `on_connect` gets each connection that they open."""
        secret = secrets.token_bytes(_SECRET_BYTES)
        self._callbacks[secret] = on_connect
        return Address(self._host, self._port, secret)

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._connections:
            connection.close()

    def _identified(self, secret: bytes, connection: "GatewayConnection") -> None:
        on_connect = self._callbacks.get(secret)
        if on_connect is None:
            connection.close()
            return
        self._connections = {one for one in self._connections if not one.lost} | {connection}
        on_connect(connection)


class GatewayConnection(FrameProtocol):
    """The gateway's end of a connection. It ignores everything from a peer that has not sent a valid secret first.

    Attributes:
        replica_id: the identifier of the replica at the other end.
        draining: whether that replica accepts no further requests.
    """

    replica_id: bytes

    def __init__(
        self, identified: Callable[[bytes, "GatewayConnection"], None], greeting: "set[GatewayConnection]"
    ) -> None:
        super().__init__()
        self._greeting = greeting
        self.draining = False
        self._identified, self._trusted = identified, False
        self._numbers = itertools.count()
        self._responses: dict[int, ResponseStream] = {}

    @property
    def ready(self) -> bool:
        """Whether it accepts requests."""
        return not (self.lost or self.draining)

    @property
    def pending(self) -> int:
        """The number of requests whose responses are not complete."""
        return len(self._responses)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._greeting.add(self)
        self._late = self._loop.call_later(GREETING_SECONDS, self.transport.abort)
        if len(self._greeting) > MAX_GREETINGS:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._trusted:
            super().data_received(data)
            return
        self._received += data
        hello = _SECRET_BYTES + _ID_BYTES
        if len(self._received) >= hello:
            secret, rest = bytes(self._received[:_SECRET_BYTES]), bytes(self._received[hello:])
            self.replica_id = bytes(self._received[_SECRET_BYTES:hello])
            self._received.clear()
            self._greeted()
            self._identified(secret, self)
            self._trusted = not self.transport.is_closing()
            if self._trusted:
                super().data_received(rest)

    def _greeted(self) -> None:
        self._greeting.discard(self)
        self._late.cancel()

    def frame_received(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.DRAINING:
            self.draining = True
            return
        queue = self._responses.get(number)
        if queue is None:
            return
        if kind is Kind.FAILED:
            queue.put_nowait(RequestFailed("the replica's log says why"))
        elif kind is not Kind.END:
            queue.put_nowait(decode(kind, payload))
        # A `CompleteResponse` ends a response, unless the usage of a cancelled request is still to come.
        if kind in (Kind.END, Kind.FAILED) or (kind is Kind.REPLY and not queue.cancelled):
            queue.put_nowait(End())
            del self._responses[number]

    @contextmanager
    def request(self, model: str, endpoint: Endpoint, body: dict[str, Any]) -> Iterator[ResponseStream]:
        """Sends a request, and yields the queue that receives the parts of its response. Leaving the context before
        the end cancels the request in the replica.

        Raises:
            ConnectionError: the connection is closed.
        """
        response = ResponseStream(next(self._numbers), self._hold)
        self.send(response.number, Kind.REQUEST, json.dumps([model, endpoint, body]).encode())
        self._responses[response.number] = response
        try:
            yield response
        finally:
            if response.number in self._responses and not self.lost:
                self.send(response.number, Kind.CANCEL)
                response.cancelled = asyncio.create_task(self._until_cancelled(response))

    def _hold(self, number: int, kind: Kind) -> None:
        if not self.lost:
            self.send(number, kind)

    async def _until_cancelled(self, response: ResponseStream) -> Usage | None:
        used = None
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                while not isinstance(item := await response.get(), End | Exception):
                    used = item if isinstance(item, Usage) else used
        except TimeoutError:
            logger.error("a replica went on for %.0f s with a request that was cancelled", CANCEL_SECONDS)
        finally:
            self._responses.pop(response.number, None)
        return used

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._greeted()
        for queue in self._responses.values():
            queue.put_nowait(ConnectionError("the replica's connection broke"))
        self._responses.clear()
