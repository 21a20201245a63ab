"""Frames on a socket between two processes, and the parts of answers in them."""

import asyncio
import json
import socket
import struct
from abc import abstractmethod
from dataclasses import asdict
from enum import IntEnum
from typing import cast

from serve.transport.messages import Part, Reply, ResponseStart, Usage

# A machine that is gone closes nothing: silence of so many seconds does, checked every few.
_GONE_SECONDS, _CHECK_SECONDS = 15, 5

# Bytes of the payload, number of the request, kind of the frame.
_HEAD = struct.Struct("!IQB")


class Kind(IntEnum):
    """What a frame holds."""

    EVENT = 0
    REPLY = 1
    USAGE = 2
    OPENING = 3
    END = 4
    FAILED = 5
    REQUEST = 6
    CANCEL = 7
    LEAVING = 8


_PARTS: dict[Kind, type[Reply] | type[Usage] | type[ResponseStart]] = {
    Kind.REPLY: Reply,
    Kind.USAGE: Usage,
    Kind.OPENING: ResponseStart,
}


def encoded(part: Part) -> tuple[Kind, bytes]:
    """A part of an answer as a frame's kind and payload."""
    if isinstance(part, str):
        return Kind.EVENT, part.encode()
    kind = next(kind for kind, known in _PARTS.items() if isinstance(part, known))
    return kind, json.dumps(asdict(part)).encode()


def decoded(kind: Kind, payload: bytes) -> Part:
    """The part of an answer that a frame holds."""
    return payload.decode() if kind is Kind.EVENT else _PARTS[kind](**json.loads(payload))


class Wire(asyncio.Protocol):
    """One end of a connection: takes frame after frame, and writes those of one turn of the event loop at once."""

    def __init__(self) -> None:
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._came, self._pending = bytearray(), bytearray()

    @abstractmethod
    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        """Called with every frame that comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            connection.setsockopt(socket.IPPROTO_TCP, option, _CHECK_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _GONE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost = True

    def data_received(self, data: bytes) -> None:
        self._came += data
        at = 0
        while len(self._came) - at >= _HEAD.size:
            size, number, kind = _HEAD.unpack_from(self._came, at)
            end = at + _HEAD.size + size
            if len(self._came) < end:
                break
            self.take(number, Kind(kind), bytes(self._came[at + _HEAD.size : end]))
            at = end
        del self._came[:at]

    def send(self, number: int, kind: Kind, payload: bytes = b"") -> None:
        """Sends a frame.

        Raises:
            ConnectionError: the other end is gone.
        """
        if self.lost:
            raise ConnectionError("the connection broke")
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending += _HEAD.pack(len(payload), number, kind)
        self._pending += payload

    def close(self) -> None:
        """Ends the connection, for both."""
        self._flush()
        self.transport.close()

    def _flush(self) -> None:
        if not self.lost:
            self.transport.write(bytes(self._pending))
        self._pending.clear()
