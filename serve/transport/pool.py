"""The models as the gateway reaches them: by connections to the replicas of a deployment, of which it uses the least
busy one.

Failures of replicas become `RequestError`s, 503, which clients understand and may retry.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import first_line
from serve.compat.ray_serve import call_every_replica
from serve.errors import RequestError
from serve.transport.gateway_end import End, GatewayConnection, ReplicaListener, RequestFailed
from serve.transport.messages import (
    Endpoint,
    EngineState,
    Part,
    PromotionResult,
    ReplicaStatus,
    ResponseStart,
    Usage,
)

logger = logging.getLogger("ray.serve")

# The most seconds for a replica to start and to connect; one that has died takes some 20 s to come back.
CONNECT_SECONDS = 60.0
RECONNECT_SECONDS = 0.5
# Seconds between two looks for new replicas.
POLL_SECONDS = 2.0
STATUS_SECONDS = 10.0
PROMOTE_SECONDS = 600.0
# The most replicas that one request is sent to: a request that kills its replica must not kill all of them.
ATTEMPTS = 2


class ReplicaPool:
    """The connections to the replicas of one deployment.

    Ray Serve starts replicas, replaces those that die, and lists them; the pool tells each to connect. All methods
    raise a `RequestError`, 503, if no replica answers.

    Args:
        handle: the deployment's handle.
        listener: the server socket that its replicas connect to.
        start_seconds: for a deployment that may have no replica, the longest wait for one that the next request starts,
            which loads its model first; None for one that always has some.
    """

    def __init__(self, handle: DeploymentHandle, listener: ReplicaListener, start_seconds: float | None = None) -> None:
        self._handle, self._scales_to_zero = handle, start_seconds is not None
        self._connect_seconds = max(start_seconds or 0.0, CONNECT_SECONDS)
        self._address = listener.address(self._add)
        self._connections: dict[bytes, GatewayConnection] = {}
        self._added = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        # The promoted versions; a replica that started meanwhile may have missed them.
        self._promoted: dict[str, tuple[Path, str]] = {}
        self._promotion_lock = asyncio.Lock()
        self._has_answered = False

    async def least_busy(self) -> GatewayConnection:
        """Returns the connection with the fewest pending requests, and waits for one if there is none."""
        while not (ready := [one for one in self._connections.values() if one.ready]):
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(self._connect())
            # Several requests may wait for it: the cancellation of one must not cancel it for the others.
            await asyncio.shield(self._connecting)
        return min(ready, key=lambda one: one.pending)

    async def maintain(self) -> None:
        """Connects to added replicas, and repeats promotions that a replica missed, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                async with self._promotion_lock:
                    replicas = await self.statuses()
                    for model, (folder, weights) in self._promoted.items():
                        if any(replica.weights[model] != weights for replica in replicas):
                            await self._promote(model, folder, weights)
            except RequestError:
                # The failure is in the log already, and requests that come meanwhile get the error themselves.
                continue

    def expect(self, model: str, folder: Path, weights: str) -> None:
        """Makes `maintain` load a version of a model's weights into replicas that have another one."""
        self._promoted[model] = folder, weights

    async def statuses(self) -> list[ReplicaStatus]:
        """Returns the status of every replica. Replicas that fail are left out unless all fail."""
        found = await self._call_all("connect", self._address, seconds=STATUS_SECONDS)
        replicas = [one for one in found if isinstance(one, ReplicaStatus)]
        if not replicas and found:
            raise self._failed(found[0])
        self._has_answered = self._has_answered or bool(replicas)
        return replicas

    async def call_any(self, method: str, *arguments: Any) -> Any:
        """Calls a method of any one replica."""
        call: Awaitable[Any] = getattr(self._handle, method).remote(*arguments)
        try:
            return await call
        except TaskCancelledError:
            raise
        except (RayError, RayServeException) as error:
            raise self._failed(error) from error

    async def promote(self, model: str, folder: Path, weights: str) -> PromotionResult:
        """Loads a version of a model's weights in all replicas. After an error, some may have it and some may not."""
        async with self._promotion_lock:
            result = await self._promote(model, folder, weights)
            if not result.error:
                self.expect(model, folder, weights)
        return result

    async def _promote(self, model: str, folder: Path, weights: str) -> PromotionResult:
        found = await self._call_all("promote", model, folder, weights, seconds=PROMOTE_SECONDS)
        done = [one for one in found if isinstance(one, PromotionResult)]
        # A replica that died meanwhile is replaced by one that `maintain` brings up to date.
        failed = [one for one in found if isinstance(one, Exception) and not isinstance(one, RayActorError)]
        for one in failed:
            logger.error("a replica could not load the weights %s of %s", weights, model, exc_info=one)
        # A replica whose own code failed was reached.
        if not done and found and not any(isinstance(one, RayTaskError) for one in failed):
            raise self._failed(found[0])
        errors = [*(one.error for one in done if one.error), *map(_reason, failed)]
        seconds = max((one.seconds for one in done), default=0.0)
        return PromotionResult(seconds, sum(one.mixed for one in done), errors[0] if errors else None)

    async def _call_all(self, method: str, *arguments: Any, seconds: float) -> list[Any]:
        """Calls a method of every replica and returns the results, of a failed call its exception."""
        try:
            return await call_every_replica(self._handle, method, *arguments, seconds=seconds)
        except DeploymentUnavailableError as error:
            if self._scales_to_zero:
                return []
            raise self._failed(error) from error
        except (RayError, RayServeException, TimeoutError) as error:
            raise self._failed(error) from error

    async def _connect(self) -> None:
        """Waits for a replica, which may have to start first, and for its connection."""
        failure: Exception = TimeoutError(f"waited {self._connect_seconds:.0f} s for a replica")
        try:
            async with asyncio.timeout(self._connect_seconds):
                while not any(one.ready for one in self._connections.values()):
                    self._added.clear()
                    try:
                        await self._handle.connect.remote(self._address)
                    except RayActorError as error:
                        # Ray Serve may not have noticed yet that the replica is dead.
                        failure = error
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._added.wait(), RECONNECT_SECONDS)
        except (RayError, RayServeException) as error:
            raise self._failed(error) from error
        except TimeoutError:
            raise self._failed(failure) from failure

    def _add(self, connection: GatewayConnection) -> None:
        open_ones = {name: one for name, one in self._connections.items() if not one.lost}
        self._connections = open_ones | {connection.replica_id: connection}
        self._has_answered = True
        self._added.set()

    def _failed(self, error: Exception) -> RequestError:
        if self._has_answered:
            return unreachable(error)
        # This is no failure of the model: Ray Serve ends the server if a model cannot be loaded.
        logger.info("no replica has started yet: %s", error)
        return RequestError(503, "the model is still loading; try again", "ServiceUnavailableError", retry_after=5)


def _reason(error: Exception) -> str:
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {first_line(cause)}"


def unreachable(error: Exception) -> RequestError:
    """Logs the failure of a replica, and returns the 503 that clients get for it."""
    logger.error("a replica did not answer", exc_info=error)
    message = "the model cannot be reached just now; try again"
    return RequestError(503, message, "ServiceUnavailableError", retry_after=1)


GivenUp = Callable[[Awaitable[Usage | None]], None]


def ignore(_: Awaitable[Usage | None]) -> None:
    """Does nothing."""


class ModelEndpoint(Protocol):
    """A model as the gateway uses it."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any], given_up: GivenUp = ignore) -> AsyncGenerator[Part]:
        """Yields the parts of a response, the same as `ServedModel.answer`. Closing it aborts the request.

        Another `ResponseStart` may follow the first, when a second replica starts over.

        Args:
            endpoint: the endpoint.
            body: the request.
            given_up: called if it is closed before its end, with a future of the tokens that had been computed when the
                work stopped; of None if that is not known.
        """

    async def card(self) -> dict[str, Any]:
        """Returns the model's entry in `/v1/models`."""

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """Returns the JSON schema of the requests to each endpoint that the model supports."""

    async def requests(self) -> list[int]:
        """Returns how many requests each of its replicas works on."""

    async def engine_states(self) -> list[EngineState]:
        """Returns the states of its replicas' engines; none if another model's engine answers for it."""

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        """Loads another version of the weights."""


class RemoteModel:
    """A model in the replicas of a deployment. All methods raise a `RequestError`, 503, if no replica answers.

    Args:
        pool: the connections to the deployment's replicas.
        name: the model's name there.
    """

    def __init__(self, pool: ReplicaPool, name: str) -> None:
        self._pool, self._name = pool, name
        # Neither changes while the model is served, and asking for one would start a replica of a model that sleeps.
        self._card: dict[str, Any] | None = None
        self._schemas: dict[Endpoint, dict[str, Any]] | None = None

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], given_up: GivenUp = ignore
    ) -> AsyncGenerator[Part]:
        """See `ModelEndpoint`. Another replica is tried if the first one dies before it has sent more than a
        `ResponseStart`."""
        for attempts_left in reversed(range(ATTEMPTS)):
            begun, parts = False, None
            connection = await self._pool.least_busy()
            # A replica that reads nothing for a while would pile up requests here; one that is gone ends the wait.
            await connection.writable()
            try:
                with connection.request(self._name, endpoint, body) as parts:
                    while not isinstance(part := await parts.get(), End):
                        if isinstance(part, Exception):
                            raise part
                        begun = begun or not isinstance(part, ResponseStart)
                        yield part
                return
            except RequestFailed as error:
                raise unreachable(error) from error
            except ConnectionError as error:
                if begun or not attempts_left:
                    raise unreachable(error) from error
            finally:
                if parts and parts.cancelled:
                    given_up(parts.cancelled)

    async def card(self) -> dict[str, Any]:
        """See `ModelEndpoint`."""
        self._card = self._card or await self._pool.call_any("card", self._name)
        return self._card

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """See `ModelEndpoint`."""
        self._schemas = self._schemas or await self._pool.call_any("schemas", self._name)
        return self._schemas

    async def requests(self) -> list[int]:
        """See `ModelEndpoint`."""
        return [replica.requests[self._name] for replica in await self._pool.statuses()]

    async def engine_states(self) -> list[EngineState]:
        """See `ModelEndpoint`."""
        replicas = await self._pool.statuses()
        return [replica.engines[self._name] for replica in replicas if self._name in replica.engines]

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        """See `ModelEndpoint`."""
        return await self._pool.promote(self._name, folder, weights)
