"""The replicas of a deployment as the gateway reaches them: a connection to each, and the least busy one is asked."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve.errors import RequestError
from serve.transport.connection import End, GatewayConnection, ReplicaListener, RequestFailed
from serve.transport.messages import Endpoint, Part, Presence, Promoted, ResponseStart

logger = logging.getLogger("ray.serve")

# For a replica to be there and connected; one that has died takes some 20 s to come back.
CONNECT_SECONDS = 60.0
CONNECT_AGAIN_SECONDS = 0.5
# How soon further replicas are found.
LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
PROMOTE_SECONDS = 600.0


class ReplicaPool:
    """The connections to the replicas of one deployment.

    Ray Serve starts replicas, replaces those that die, and says which there are; they are told to connect. All methods
    raise a `RequestError`, 503, when none answers.

    Args:
        handle: the deployment's.
        inbox: where its replicas connect to.
        may_sleep: whether there may be none: the next request has one started.
    """

    def __init__(self, handle: DeploymentHandle, inbox: ReplicaListener, may_sleep: bool = False) -> None:
        self._handle, self._may_sleep = handle, may_sleep
        self._address = inbox.address(self._take)
        self._lines: dict[bytes, GatewayConnection] = {}
        self._came = asyncio.Event()
        self._waking: asyncio.Task[None] | None = None
        # What was promoted; a replica that started meanwhile may have missed it.
        self._promoted: dict[str, tuple[Path, str]] = {}
        self._turn = asyncio.Lock()

    async def least_busy(self) -> GatewayConnection:
        """The connection with the fewest requests on it, as soon as there is one."""
        while not (ready := [line for line in self._lines.values() if line.ready]):
            if self._waking is None or self._waking.done():
                self._waking = asyncio.create_task(self._wake())
            # Several requests may wait for it; one that is cancelled must not take it from the others.
            await asyncio.shield(self._waking)
        return min(ready, key=lambda line: line.requests)

    async def keep(self) -> None:
        """Connects to replicas that are added, and has them follow promotions that they missed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                async with self._turn:
                    present = await self.presences()
                    for model, (folder, weights) in self._promoted.items():
                        if any(one.weights[model] != weights for one in present):
                            await self._promote(model, folder, weights)
            except RequestError:
                # It was logged, and whoever asks meanwhile is told.
                continue

    async def presences(self) -> list[Presence]:
        """What every replica says of itself; where some answer, those that do not are left out."""
        found = await self._all("connect", self._address, seconds=ANSWER_SECONDS)
        present = [one for one in found if isinstance(one, Presence)]
        if not present and found:
            raise unreachable(found[0])
        return present

    async def ask_one(self, method: str, *arguments: Any) -> Any:
        """Calls a replica, whichever."""
        call: Awaitable[Any] = getattr(self._handle, method).remote(*arguments)
        try:
            return await call
        except TaskCancelledError:
            raise
        except (RayError, RayServeException) as error:
            raise unreachable(error) from error

    async def promote(self, model: str, folder: Path, weights: str) -> Promoted:
        """Has all replicas take over a version of a model's weights. On an error some may have it and some may not."""
        async with self._turn:
            done = await self._promote(model, folder, weights)
            if not done.error:
                self._promoted[model] = folder, weights
        return done

    async def _promote(self, model: str, folder: Path, weights: str) -> Promoted:
        found = await self._all("promote", model, folder, weights, seconds=PROMOTE_SECONDS)
        done = [one for one in found if isinstance(one, Promoted)]
        # The successor of a replica that died meanwhile is looked after by `keep`.
        failed = [one for one in found if isinstance(one, Exception) and not isinstance(one, RayActorError)]
        if not done and found:
            raise unreachable(found[0])
        errors = [*(one.error for one in done if one.error), *map(str, failed)]
        seconds = max((one.seconds for one in done), default=0.0)
        return Promoted(seconds, sum(one.mixed for one in done), errors[0] if errors else None)

    async def _all(self, method: str, *arguments: Any, seconds: float) -> list[Any]:
        """What a method gave on every replica: results and exceptions."""
        try:
            called = self._handle.broadcast(method, *arguments)
            return await called.results_async(timeout_s=seconds, return_exceptions=True)
        except DeploymentUnavailableError as error:
            if self._may_sleep:
                return []
            raise unreachable(error) from error
        except (RayError, RayServeException, TimeoutError) as error:
            raise unreachable(error) from error

    async def _wake(self) -> None:
        """Waits for a replica, which may still have to start, and for its connection."""
        failure: Exception = TimeoutError(f"waited {CONNECT_SECONDS:.0f} s for a replica")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while not any(line.ready for line in self._lines.values()):
                    self._came.clear()
                    try:
                        await self._handle.connect.remote(self._address)
                    except RayActorError as error:
                        # Ray Serve may not know yet that the replica is dead.
                        failure = error
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._came.wait(), CONNECT_AGAIN_SECONDS)
        except (RayError, RayServeException) as error:
            raise unreachable(error) from error
        except TimeoutError:
            raise unreachable(failure) from failure

    def _take(self, line: GatewayConnection) -> None:
        self._lines = {name: one for name, one in self._lines.items() if not one.lost} | {line.replica: line}
        self._came.set()


def unreachable(error: Exception) -> RequestError:
    """The failure of a replica as an answer that clients understand and may retry."""
    logger.error("a replica did not answer", exc_info=error)
    message = "the model cannot be reached just now; try again"
    return RequestError(503, message, "ServiceUnavailableError", wait=1)


# A model as the gateway sees it: replicas of a Ray Serve deployment, whose failures are answers.
# A request that kills each replica that it comes to must not go on and on.
TRIES = 2


class ModelEndpoint(Protocol):
    """What the gateway asks of a model."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """The parts of an answer, as `Served.answer`. Closing it ends the work on it.

        Another `ResponseStart` may follow the first, when another replica begins anew.
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

    def __init__(self, lines: ReplicaPool, name: str) -> None:
        self._lines, self._name = lines, name
        # They stay the same while it is served, and asking for them would wake it up.
        self._card: dict[str, Any] | None = None
        self._schemas: dict[Endpoint, dict[str, Any]] | None = None

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """See `ModelEndpoint`. If the replica goes away when it has said no more than a `ResponseStart`, another one is
        asked."""
        for left in reversed(range(TRIES)):
            begun = False
            line = await self._lines.least_busy()
            try:
                with line.asking(self._name, endpoint, body) as parts:
                    while not isinstance(part := await parts.get(), End):
                        if isinstance(part, Exception):
                            raise part
                        begun = begun or not isinstance(part, ResponseStart)
                        yield part
                return
            except RequestFailed as error:
                raise unreachable(error) from error
            except ConnectionError as error:
                if begun or not left:
                    raise unreachable(error) from error

    async def card(self) -> dict[str, Any]:
        """See `ModelEndpoint`."""
        self._card = self._card or await self._lines.ask_one("card", self._name)
        return self._card

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """See `ModelEndpoint`."""
        self._schemas = self._schemas or await self._lines.ask_one("schemas", self._name)
        return self._schemas

    async def requests(self) -> list[int]:
        """See `ModelEndpoint`."""
        return [replica.requests[self._name] for replica in await self._lines.presences()]

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """See `ModelEndpoint`."""
        return await self._lines.promote(self._name, folder, weights)
