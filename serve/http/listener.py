"""The HTTP listener of the gateway: uvicorn on a socket that drops clients which stop reading."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp

# Longer than clients keep an idle connection (httpx 5 s, proxies 60 s): the client has to close first, or a request
# may arrive on a closing connection and be lost.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024
# A client that accepts no byte for so long is disconnected, which ends its request.
UNREAD_SECONDS = 60.0


class Listener:
    """Serves an ASGI application inside a running event loop.

    Args:
        app: the application.
        host: the address to listen on.
        port: the port to listen on.
        stop_seconds: how long responses in progress may take when it is closed.
        unread_seconds: after how long a client that does not read is disconnected.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, stop_seconds: float, unread_seconds: float = UNREAD_SECONDS
    ) -> None:
        config = uvicorn.Config(
            app,
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
        self._server = uvicorn.Server(config)
        self._socket = listening_socket(host, port, unread_seconds)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    def is_open(self) -> bool:
        """Returns whether it accepts requests."""
        return not self._serving.done()

    async def close(self) -> None:
        """Stops accepting requests, and waits `stop_seconds` for those in progress."""
        self._server.should_exit = True
        await self._serving


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
