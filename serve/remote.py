"""A model as the gateway sees it: replicas of a Ray Serve deployment, whose failures are answers."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

from serve.channel import End, RequestFailed
from serve.lines import Lines, unreachable
from serve.parts import Endpoint, Opening, Part, Promoted

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

    async def requests(self) -> list[int]:
        """How many requests each of its replicas works on."""

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """Takes over another version of the weights."""


class RemoteModel:
    """A model in a deployment. All methods raise a `RequestError`, 503, when no replica answers.

    Args:
        lines: the connections to the deployment's replicas.
        name: the model's name there.
    """

    def __init__(self, lines: Lines, name: str) -> None:
        self._lines, self._name = lines, name
        # They stay the same while it is served, and asking for them would wake it up.
        self._card: dict[str, Any] | None = None
        self._schemas: dict[Endpoint, dict[str, Any]] | None = None

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """See `Model`. If the replica goes away when it has said no more than an `Opening`, another one is asked."""
        for left in reversed(range(TRIES)):
            begun = False
            line = await self._lines.least_busy()
            try:
                with line.asking(self._name, endpoint, body) as parts:
                    while not isinstance(part := await parts.get(), End):
                        if isinstance(part, Exception):
                            raise part
                        begun = begun or not isinstance(part, Opening)
                        yield part
                return
            except RequestFailed as error:
                raise unreachable(error) from error
            except ConnectionError as error:
                if begun or not left:
                    raise unreachable(error) from error

    async def card(self) -> dict[str, Any]:
        """See `Model`."""
        self._card = self._card or await self._lines.ask_one("card", self._name)
        return self._card

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """See `Model`."""
        self._schemas = self._schemas or await self._lines.ask_one("schemas", self._name)
        return self._schemas

    async def requests(self) -> list[int]:
        """See `Model`."""
        return [replica.requests[self._name] for replica in await self._lines.presences()]

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """See `Model`."""
        return await self._lines.promote(self._name, folder, weights)
