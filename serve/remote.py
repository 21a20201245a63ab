"""A model as the gateway sees it: a handle to its Ray Serve deployment, whose failures are answers."""

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve.errors import RequestError
from serve.replica import Endpoint, Part

logger = logging.getLogger("ray.serve")


class Model(Protocol):
    """What the gateway asks of a model."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """The parts of an answer, as `Replica.answer`. Closing it ends the work on it."""

    async def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""

    async def requests(self) -> int:
        """How many requests it works on."""


class RemoteModel:
    """A model in a deployment.

    All methods raise a `RequestError`, 503, when no replica answers.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """See `Model`."""
        stream = cast(DeploymentResponseGenerator, self._handle.options(stream=True).answer.remote(endpoint, body))
        try:
            with _unreachable():
                async for part in stream:
                    yield part
        finally:
            # Reached early when the client has gone; the replica then aborts the request in its engine.
            stream.cancel()

    async def card(self) -> dict[str, Any]:
        """See `Model`."""
        with _unreachable():
            return await self._handle.card.remote()

    async def requests(self) -> int:
        """See `Model`."""
        with _unreachable():
            return await self._handle.requests.remote()


@contextmanager
def _unreachable() -> Iterator[None]:
    """Turns the failure of a replica into an answer that clients understand and may retry."""
    try:
        yield
    except TaskCancelledError:
        raise
    except (RayError, RayServeException) as error:
        logger.exception("a replica did not answer")
        message = "the model cannot be reached just now; try again"
        raise RequestError(503, message, "ServiceUnavailableError", wait=1) from error
