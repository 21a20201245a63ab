"""A model as the gateway sees it: a handle to its Ray Serve deployment, whose failures are answers."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any, Protocol

from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from serve.channel import Address, End, Inbox, Item
from serve.errors import RequestError
from serve.parts import Endpoint, Part, Promoted, Reply

logger = logging.getLogger("ray.serve")

# For the parts that are still on their way when a replica says that it has sent all, or when it fails.
LATE_SECONDS, FAILED_SECONDS = 5.0, 0.1


class Model(Protocol):
    """What the gateway asks of a model."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """The parts of an answer, as `Served.answer`. Closing it ends the work on it."""

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
        inbox: where its answers come in.
        address: the inbox's.
    """

    def __init__(self, handle: DeploymentHandle, name: str, inbox: Inbox, address: Address) -> None:
        self._handle, self._name, self._inbox, self._address = handle, name, inbox, address
        self._watches: set[asyncio.Task[None]] = set()

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """See `Model`."""
        with self._inbox.expecting() as (number, parts):
            call: Any = self._handle.answer_to.remote(self._name, self._address, number, endpoint, body)
            watch = asyncio.create_task(_watch(call, parts))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
            ended = False
            try:
                while True:
                    part = await parts.get()
                    if isinstance(part, End):
                        ended = True
                        return
                    if isinstance(part, Exception):
                        raise _unreachable(part)
                    # Nothing but the end comes after it, and who has it does not ask for more.
                    ended = isinstance(part, Reply)
                    yield part
            finally:
                if not ended:
                    # The client has gone, or the replica; the request in its engine is aborted.
                    call.cancel()

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


async def _watch(call: Awaitable[Any], parts: asyncio.Queue[Item]) -> None:
    """Tells who waits for parts that none will come, if the replica is gone or its connection is."""
    failure: Exception = ConnectionError("the end of an answer did not come")
    seconds = LATE_SECONDS
    try:
        await call
    except (TaskCancelledError, RequestCancelledError):
        return
    except (RayError, RayServeException) as error:
        failure, seconds = error, FAILED_SECONDS
    asyncio.get_running_loop().call_later(seconds, parts.put_nowait, failure)


def _unreachable(error: Exception) -> RequestError:
    """The failure of a replica as an answer that clients understand and may retry."""
    logger.error("a replica did not answer", exc_info=error)
    message = "the model cannot be reached just now; try again"
    return RequestError(503, message, "ServiceUnavailableError", wait=1)
