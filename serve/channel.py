"""The way of answers from replicas to the gateway: one socket for each pair, on which all their streams share frames.

Ray Serve says which replica answers, how many requests it holds and when one is cancelled. It also carries streams, at
about a millisecond of CPU for every token in each process; a frame here costs a hundredth of that.
"""

import asyncio
import hmac
import itertools
import json
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

from serve.parts import Opening, Part, Reply, Usage

# Bytes of the payload, number of the request, kind of the part.
_HEAD = struct.Struct("!IQB")
_EVENT, _REPLY, _USAGE, _OPENING, _END = range(5)
_KINDS: dict[int, type[Reply] | type[Usage] | type[Opening]] = {_REPLY: Reply, _USAGE: Usage, _OPENING: Opening}
_HELLO_BYTES = 32


class End:
    """There are no more parts."""


Item = Part | End | Exception


@dataclass(frozen=True)
class Address:
    """Where a gateway takes answers, and the secret that only its replicas are told."""

    host: str
    port: int
    secret: bytes


class Inbox:
    """The gateway's side: sorts the parts that come in by request."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[Item]] = {}
        self._secret = secrets.token_bytes(_HELLO_BYTES)

    async def open(self, host: str) -> Address:
        """Begins to listen at an address of this machine, and gives what replicas have to know."""
        server = await asyncio.get_running_loop().create_server(lambda: _Reader(self._secret, self), host, 0)
        return Address(host, server.sockets[0].getsockname()[1], self._secret)

    @contextmanager
    def expecting(self) -> Iterator[tuple[int, "asyncio.Queue[Item]"]]:
        """A number for one request, and the queue that its parts go into. What comes later is thrown away."""
        number, queue = next(self._numbers), asyncio.Queue[Item]()
        self._waiting[number] = queue
        try:
            yield number, queue
        finally:
            del self._waiting[number]

    def deliver(self, number: int, item: Item) -> None:
        """Hands a part to the request that waits for it, if one still does."""
        if queue := self._waiting.get(number):
            queue.put_nowait(item)


class _Reader(asyncio.Protocol):
    """One replica's connection. Until it has sent the secret, nothing that it says is heard."""

    def __init__(self, secret: bytes, inbox: Inbox) -> None:
        self._secret, self._inbox = secret, inbox
        self._left, self._known = bytearray(), False
        self._open: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._left += data
        if not self._known:
            if len(self._left) < _HELLO_BYTES:
                return
            if not hmac.compare_digest(bytes(self._left[:_HELLO_BYTES]), self._secret):
                self._transport.close()
                return
            self._known = True
            del self._left[:_HELLO_BYTES]
        at = 0
        while len(self._left) - at >= _HEAD.size:
            size, number, kind = _HEAD.unpack_from(self._left, at)
            end = at + _HEAD.size + size
            if len(self._left) < end:
                break
            self._take(number, kind, bytes(self._left[at + _HEAD.size : end]))
            at = end
        del self._left[:at]

    def _take(self, number: int, kind: int, payload: bytes) -> None:
        self._open.add(number)
        if kind == _EVENT:
            self._inbox.deliver(number, payload.decode())
        elif kind == _END:
            self._open.discard(number)
            self._inbox.deliver(number, End())
        else:
            self._inbox.deliver(number, _KINDS[kind](**json.loads(payload)))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        for number in self._open:
            self._inbox.deliver(number, ConnectionError("the replica's connection broke"))


class Outbox:
    """A replica's side: one connection to each gateway, made when it is first needed."""

    def __init__(self) -> None:
        self._writers: dict[Address, asyncio.Task[_Writer]] = {}

    async def to(self, address: Address) -> "_Writer":
        """The connection to a gateway.

        Raises:
            OSError: it does not answer.
        """
        opening = self._writers.get(address)
        if opening is None or (opening.done() and (opening.exception() or opening.result().lost)):
            opening = self._writers[address] = asyncio.create_task(_connect(address))
        # Several requests may wait for it; one that is cancelled must not take it from the others.
        return await asyncio.shield(opening)


class _Writer(asyncio.Protocol):
    """Collects the frames of one turn of the event loop and writes them at once."""

    def __init__(self) -> None:
        self.lost = False
        self._pending = bytearray()
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost = True

    def send(self, number: int, part: Part) -> None:
        """One part of an answer.

        Raises:
            ConnectionError: the gateway is gone.
        """
        if isinstance(part, str):
            self._frame(number, _EVENT, part.encode())
        else:
            kind = next(kind for kind, known in _KINDS.items() if isinstance(part, known))
            self._frame(number, kind, json.dumps(asdict(part)).encode())

    def end(self, number: int) -> None:
        """No more parts."""
        self._frame(number, _END, b"")

    def _frame(self, number: int, kind: int, payload: bytes) -> None:
        if self.lost:
            raise ConnectionError("the gateway's connection broke")
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending += _HEAD.pack(len(payload), number, kind)
        self._pending += payload

    def _flush(self) -> None:
        if not self.lost:
            self.transport.write(bytes(self._pending))
        self._pending.clear()


async def _connect(address: Address) -> _Writer:
    _, writer = await asyncio.get_running_loop().create_connection(_Writer, address.host, address.port)
    writer.transport.write(address.secret)
    return writer
