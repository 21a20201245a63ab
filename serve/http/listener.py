"""The HTTP listener of the gateway: uvicorn on a socket that gives up on clients who do not read."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp

# Longer than clients keep an idle connection (httpx 5 s, proxies 60 s): who closes first must be the client, or a
# request may meet a closing connection and be lost.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024
# After so long without a byte taken by the client the connection is cut, and its request ends.
UNREAD_SECONDS = 60.0


class Listener:
    """Serves an ASGI application inside a running event loop.

    Args:
        app: the application.
        host: the address to listen on.
        port: the port to listen on.
        stop_seconds: for answers that are being written when it is closed.
        unread_seconds: as `listening_socket`.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, stop_seconds: float, unread_seconds: float = UNREAD_SECONDS
    ) -> None:
        config = uvicorn.Config(
            app,
            # uvicorn's set-up of logging would close Ray Serve's log of the gateway, as vLLM's would a replica's.
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
        """Whether it takes requests."""
        return not self._serving.done()

    async def close(self) -> None:
        """Takes no more requests and lets those that are being answered end, for the time given."""
        self._server.should_exit = True
        await self._serving


def listening_socket(host: str, port: int, unread_seconds: float) -> socket.socket:
    """A socket whose connections the kernel cuts when their client has not read for so long.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Linux alone has it. Connections inherit it from the socket that accepts them.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_seconds * 1e3))
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened
