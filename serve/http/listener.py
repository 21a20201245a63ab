"""The HTTP listener of every server: uvicorn on a socket, with limits on the size and time of a request before its key
is checked."""

import asyncio
import socket
import ssl
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.errors import UserError
from cluster.recipe.serve import Tls

# Longer than clients keep an idle connection (httpx 5 s, proxies 60 s): the client has to close first, or a request
# may arrive on a closing connection and be lost.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024
# A client that accepts no byte for so long is disconnected, which ends its request.
UNREAD_SECONDS = 60.0
# Limits on a request's line and header fields; nginx allows 32 KB and 60 s.
MAX_HEAD_BYTES, HEAD_SECONDS = 64 << 10, 10.0
# Between a response to a request that is still being sent and the end of its connection.
LINGER_SECONDS = 1.0
# The most bytes of a refused body that are read to its end.
SMALL_BODY = 64 << 10
# Each takes some 20 KB. Above it, the connection that has waited for a request longest is closed.
MAX_CONNECTIONS = 1000


class Listener:
    """Serves an ASGI application inside a running event loop.

    Args:
        app: the application.
        host: the address to listen on.
        port: the port to listen on.
        stop_seconds: how long responses in progress may take when it is closed.
        unread_seconds: after how long a client that does not read is disconnected.
        head_seconds: how long a client may take to send the head of a request.
        max_connections: the most connections at once.
        tls: the certificate to encrypt with; None for plain HTTP.

    Raises:
        OSError: it cannot listen there.
        UserError: the certificate cannot be used.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        stop_seconds: float,
        unread_seconds: float = UNREAD_SECONDS,
        head_seconds: float = HEAD_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
        tls: Tls | None = None,
    ) -> None:
        waiting: dict[BoundedProtocol, None] = {}
        protocol: Any = partial(
            BoundedProtocol, waiting=waiting, head_seconds=head_seconds, max_connections=max_connections
        )
        config = uvicorn.Config(
            app,
            http=protocol,
            # uvicorn's set-up of logging would close Ray Serve's log of the gateway; vLLM's would do so in a replica.
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, int(stop_seconds)),
        )
        self._server = _Server(config, encryption(tls), head_seconds)
        self._socket = listening_socket(host, port, unread_seconds)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    def is_open(self) -> bool:
        """Returns whether it accepts requests."""
        return not self._serving.done()

    async def wait(self) -> None:
        """Returns when the listener has ended. In the main thread SIGINT and SIGTERM end it; they are raised again
        afterwards."""
        await self._serving

    async def close(self) -> None:
        """Stops accepting requests, and waits `stop_seconds` for those in progress."""
        self._server.should_exit = True
        await self._serving


class _Server(uvicorn.Server):
    """uvicorn's server, which by itself waits 60 s for a client to agree on the encryption.

    After an upgrade of uvicorn, look at `Server.startup`, which is given no socket here, and so opens no server.
    """

    def __init__(self, config: uvicorn.Config, encryption: ssl.SSLContext | None, handshake_seconds: float) -> None:
        super().__init__(config)
        self._encryption, self._handshake_seconds = encryption, handshake_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        for opened in sockets or []:
            make: Any = self.config.http_protocol_class
            server = await asyncio.get_running_loop().create_server(
                partial(make, self.config, self.server_state, self.lifespan.state),
                sock=opened,
                backlog=BACKLOG,
                ssl=self._encryption,
                ssl_handshake_timeout=self._handshake_seconds if self._encryption else None,
            )
            self.servers.append(server)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself takes heads of any length, for any time, on any number of connections.

    After an upgrade of uvicorn, look at the callbacks of httptools in `HttpToolsProtocol`.

    Args:
        waiting: the connections of the listener on which no request is in progress, the longest waiting first.
        head_seconds: how long a client may take to send the head of a request.
        max_connections: the most connections at once.
    """

    def __init__(
        self,
        *arguments: Any,
        waiting: "dict[BoundedProtocol, None]",
        head_seconds: float,
        max_connections: int,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._waiting, self._head_seconds, self._max_connections = waiting, head_seconds, max_connections
        self._head_bytes: int | None = 0
        self._head_end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting[self] = None
        self._limit_head()
        if len(self.connections) > self._max_connections:
            next(iter(self._waiting)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.pop(self, None)
        self._head_is_complete()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_bytes is None:
            self._limit_head()

    def on_headers_complete(self) -> None:
        self._head_is_complete()
        self._waiting.pop(self, None)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        size = dict(self.cycle.scope["headers"]).get(b"content-length", b"")
        # The rest of a small body is read, so that the client can send its next request on this connection.
        small = size.isdigit() and int(size) <= SMALL_BODY
        if self.cycle.response_complete and self.cycle.more_body and not small and not self.transport.is_closing():
            # The rest of a refused body is not even read. The client gets time to read the response.
            self.flow.pause_reading()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)
            return
        if not self._is_answering() and not self.transport.is_closing():
            self._waiting[self] = None

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit_head(self) -> None:
        self._head_bytes = 0
        self._head_end = self.loop.call_later(self._head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._is_answering():
            # A client may send the next head before it has read the answer.
            self._head_end = self.loop.call_later(self._head_seconds, self._head_is_late)
        else:
            self.transport.abort()

    def _head_is_complete(self) -> None:
        self._head_bytes = None
        if self._head_end:
            self._head_end.cancel()
            self._head_end = None


def listening_socket(host: str, port: int, unread_seconds: float) -> socket.socket:
    """Returns a socket whose connections the kernel closes if their client does not read for `unread_seconds`.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # On Linux only. Connections inherit it from the socket that accepts them.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_seconds * 1e3))
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def encryption(tls: Tls | None) -> ssl.SSLContext | None:
    """Returns the TLS context of a server, of version 1.2 or later; None without a certificate.

    Raises:
        UserError: the files cannot be read, or do not belong together.
    """
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except OSError as error:
        unread = "they are not in PEM, or the key has a password"
        reason = error.reason or unread if isinstance(error, ssl.SSLError) else error.strerror
        raise UserError(f"serve.tls: {tls.certificate} and {tls.key} cannot be used: {reason}") from error
    return context
