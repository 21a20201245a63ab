"""A model as the gateway sees it: a handle to its Ray Serve deployment, whose failures are answers."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.channel import End, Inbox, Line, RequestFailed
from serve.errors import RequestError
from serve.parts import Endpoint, Opening, Part, Promoted

logger = logging.getLogger("ray.serve")

# For a replica to be there and connected; one that has died takes some 20 s to come back.
CONNECT_SECONDS = 60.0
CONNECT_AGAIN_SECONDS = 0.5
# A request that kills each replica that it comes to must not go on and on.
TRIES = 2


class Model(Protocol):
    """What the gateway asks of a model."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """The parts of an answer, as `Served.answer`. Closing it ends the work on it.

        Another `Opening` may follow the first, when another replica begins anew.
        """

    async def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """The JSON schema of the requests to every endpoint that it has."""

    async def requests(self) -> int:
        """How many requests it works on."""

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """Takes over another version of the weights."""


class RemoteModel:
    """A model in a deployment.

    All methods raise a `RequestError`, 503, when no replica answers.

    Args:
        handle: the deployment's.
        name: the model's name there.
        inbox: where its replica connects to.
    """

    def __init__(self, handle: DeploymentHandle, name: str, inbox: Inbox) -> None:
        self._handle, self._name, self._inbox = handle, name, inbox
        self._connecting: asyncio.Task[Line] | None = None
        self._attended: asyncio.Task[Exception | None] | None = None

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """See `Model`. If the replica goes away when it has said no more than an `Opening`, its successor is asked."""
        for left in reversed(range(TRIES)):
            begun = False
            line = await self._line()
            try:
                with line.asking(endpoint, body) as parts:
                    while not isinstance(part := await parts.get(), End):
                        if isinstance(part, Exception):
                            raise part
                        begun = begun or not isinstance(part, Opening)
                        yield part
                return
            except RequestFailed as error:
                raise _unreachable(error) from error
            except ConnectionError as error:
                if begun or not left:
                    raise _unreachable(error) from error

    async def card(self) -> dict[str, Any]:
        """See `Model`."""
        call: Any = self._handle.card.remote(self._name)
        return await self._ask(call)

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """See `Model`."""
        call: Any = self._handle.schemas.remote(self._name)
        return await self._ask(call)

    async def requests(self) -> int:
        """See `Model`."""
        call: Any = self._handle.requests.remote(self._name)
        return await self._ask(call)

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """See `Model`."""
        call: Any = self._handle.promote.remote(self._name, folder, weights)
        return await self._ask(call)

    async def _ask(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except TaskCancelledError:
            raise
        except (RayError, RayServeException) as error:
            raise _unreachable(error) from error

    async def _line(self) -> Line:
        connecting = self._connecting
        if connecting is None or (connecting.done() and (connecting.exception() or connecting.result().lost)):
            connecting = self._connecting = asyncio.create_task(self._connect())
        # Several requests may wait for it; one that is cancelled must not take it from the others.
        return await asyncio.shield(connecting)

    async def _connect(self) -> Line:
        failure: Exception = TimeoutError(f"waited {CONNECT_SECONDS:.0f} s for a replica of {self._name}")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while True:
                    try:
                        return await self._connect_once()
                    except RayActorError as error:
                        # Ray Serve may not know yet that the replica is dead.
                        failure = error
                        await asyncio.sleep(CONNECT_AGAIN_SECONDS)
        except (RayError, RayServeException) as error:
            raise _unreachable(error) from error
        except TimeoutError:
            raise _unreachable(failure) from failure

    async def _connect_once(self) -> Line:
        with self._inbox.expecting() as (address, line):
            call: Any = self._handle.attend.remote(self._name, address)
            attended = self._attended = asyncio.create_task(_end(call))
            either: set[asyncio.Future[Any]] = {line, attended}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not line.done():
                    call.cancel()
            if line.done():
                # A machine that is gone does not close its connections. Ray notices.
                attended.add_done_callback(lambda _: line.result().transport.abort())
                return line.result()
            raise attended.result() or RayServeException("the replica ended the connection at once")


async def _end(call: Awaitable[None]) -> Exception | None:
    """Why a call that lasts as long as a connection ended, if it failed."""
    try:
        await call
    except (RayError, RayServeException) as error:
        return error
    return None


def _unreachable(error: Exception) -> RequestError:
    """The failure of a replica as an answer that clients understand and may retry."""
    logger.error("a replica did not answer", exc_info=error)
    message = "the model cannot be reached just now; try again"
    return RequestError(503, message, "ServiceUnavailableError", wait=1)
