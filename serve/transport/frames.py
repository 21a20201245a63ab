"""The encoding of requests and response parts as frames on a socket between two processes."""

import asyncio
import json
import logging
import socket
import struct
from abc import abstractmethod
from dataclasses import asdict
from enum import IntEnum
from typing import cast

from serve.transport.messages import CompleteResponse, Part, ResponseStart, Usage

logger = logging.getLogger("ray.serve")

# A machine that fails does not close its connections: the kernel does, after so many seconds of silence. It probes
# every few seconds.
_DEAD_PEER_SECONDS, _PROBE_SECONDS = 15, 5

# The largest are the text of a request, of 10 MB at most before JSON escapes it, and a complete response.
MAX_FRAME_BYTES = 64 << 20
# The most bytes that a connection buffers while its other end does not read; more have to wait.
WRITE_BUFFER_BYTES = 1 << 20

# Length of the payload in bytes, number of the request, kind of the frame.
_HEADER = struct.Struct("!IQB")


class Kind(IntEnum):
    """The kind of a frame's payload."""

    EVENT = 0
    REPLY = 1
    USAGE = 2
    RESPONSE_START = 3
    END = 4
    FAILED = 5
    REQUEST = 6
    CANCEL = 7
    DRAINING = 8
    PAUSE = 9
    RESUME = 10


_PARTS: dict[Kind, type[CompleteResponse] | type[Usage] | type[ResponseStart]] = {
    Kind.REPLY: CompleteResponse,
    Kind.USAGE: Usage,
    Kind.RESPONSE_START: ResponseStart,
}


def encode(part: Part) -> tuple[Kind, bytes]:
    """Returns the kind and the payload of the frame that carries a response part."""
    if isinstance(part, str):
        return Kind.EVENT, part.encode()
    kind = next(kind for kind, known in _PARTS.items() if isinstance(part, known))
    return kind, json.dumps(asdict(part)).encode()


def decode(kind: Kind, payload: bytes) -> Part:
    """Returns the response part that a frame carries."""
    return payload.decode() if kind is Kind.EVENT else _PARTS[kind](**json.loads(payload))


class FrameProtocol(asyncio.Protocol):
    """One end of a connection: splits the bytes into frames, and sends all frames of one event-loop turn in one write.

    Attributes:
        lost: whether the connection is closed.
    """

    def __init__(self) -> None:
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._received, self._unsent = bytearray(), bytearray()
        self._writable = asyncio.Event()
        self._writable.set()

    @abstractmethod
    def frame_received(self, number: int, kind: Kind, payload: bytes) -> None:
        """Handles one frame. Called for every frame that arrives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Not every system has all of them.
        for name, value in (
            ("TCP_KEEPIDLE", _PROBE_SECONDS),
            ("TCP_KEEPINTVL", _PROBE_SECONDS),
            ("TCP_USER_TIMEOUT", 1000 * _DEAD_PEER_SECONDS),
        ):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost = True
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def writable(self) -> None:
        """Returns when the other end has read most of the buffered data, or the connection is closed."""
        await self._writable.wait()

    def data_received(self, data: bytes) -> None:
        self._received += data
        start = 0
        while len(self._received) - start >= _HEADER.size:
            size, number, kind = _HEADER.unpack_from(self._received, start)
            if size > MAX_FRAME_BYTES:
                logger.error("a frame of %d bytes was refused, and its connection closed", size)
                self.transport.abort()
                return
            end = start + _HEADER.size + size
            if len(self._received) < end:
                break
            self.frame_received(number, Kind(kind), bytes(self._received[start + _HEADER.size : end]))
            start = end
        del self._received[:start]

    def send(self, number: int, kind: Kind, payload: bytes = b"") -> None:
        """Sends a frame.

        Raises:
            ConnectionError: the connection is closed.
            ValueError: the payload is too large for a frame, which would end the connection.
        """
        if self.lost:
            raise ConnectionError("the connection broke")
        if len(payload) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame holds {MAX_FRAME_BYTES >> 20} MB at most, and not {len(payload) >> 20}")
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += _HEADER.pack(len(payload), number, kind)
        self._unsent += payload

    def close(self) -> None:
        """Closes the connection for both ends, after sending the buffered data."""
        self._flush()
        self.transport.close()

    def _flush(self) -> None:
        if not self.lost:
            self.transport.write(bytes(self._unsent))
        self._unsent.clear()
