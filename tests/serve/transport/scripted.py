"""A deployment of this process: replicas with a model that counts, and a handle that calls them."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve.replica.replica import ReplicaServer
from serve.transport.messages import (
    TALLY,
    CompleteResponse,
    Endpoint,
    EngineState,
    Part,
    PromotionResult,
    ResponseStart,
    Usage,
)

MODEL = "count"


class Counting:
    """Counts up to the number asked for; fails at 3 on request, and waits for ever at 5, or before it counts."""

    def __init__(self, broken: bool = False) -> None:
        self.left, self.begun = asyncio.Event(), asyncio.Event()
        self.asked, self.open, self.counted, self.weights, self.broken = 0, 0, 0, "abc", broken

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        self.asked += 1
        self.open += 1
        try:
            yield ResponseStart(self.weights)
            self.begun.set()
            if endpoint == "score":
                yield CompleteResponse(200, body)
                return
            if self.broken:
                await asyncio.sleep(60)
            for number in range(body["to"]):
                if number == 3 and body.get("fail"):
                    raise ValueError("no more")
                if number == 5:
                    await asyncio.sleep(60)
                TALLY.get().prompt_tokens = 3
                TALLY.get().completion_tokens += 1
                self.counted += 1
                yield f"data: {number}\n\n"
            yield Usage(1, body["to"])
        finally:
            self.open -= 1
            self.left.set()

    async def card(self) -> dict[str, Any]:
        return {"id": MODEL}

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        return {"completions": {}}

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        if self.broken:
            return PromotionResult(0.5, error="the files cannot be read")
        assert folder
        self.weights = weights
        return PromotionResult(0.25, self.open)

    def weights_version(self) -> str:
        return self.weights

    def requests(self) -> int:
        return self.open

    def engine_state(self) -> EngineState:
        return EngineState(running=self.open)

    async def check_health(self) -> None:
        pass

    def close(self) -> None:
        pass


class Replica(ReplicaServer):
    """A replica of this process."""

    def __init__(self, model: Counting) -> None:
        super().__init__({MODEL: model})
        self.model = model

    def die(self) -> None:
        for connection in self._connections.values():
            connection.transport.abort()


class Dead(Replica):
    """A dead replica that Ray Serve still lists."""

    async def check_health(self) -> None:
        raise RayActorError()


class Faulty(Replica):
    """A replica whose code raises when it is to load other weights."""

    async def promote(self, *_: Any) -> PromotionResult:
        raise RayTaskError("promote", "Traceback (most recent call last):", ValueError("no room\nfor them"))


class Handle:
    """A deployment handle of the test: calls go to its list of replicas, and wait while the list is empty."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas, self.calls = list(replicas), 0
        self.failure: Exception | None = None

    def __getattr__(self, method: str) -> Any:
        return Method(lambda *arguments: asyncio.create_task(self._call(method, *arguments)))

    async def _call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        if self.failure:
            raise self.failure
        while not self.replicas:
            await asyncio.sleep(0.01)
        return await getattr(self.replicas[0], method)(*arguments)

    def broadcast(self, method: str, *arguments: Any) -> Any:
        return Broadcast([getattr(replica, method)(*arguments) for replica in self.replicas])


class Method:
    def __init__(self, remote: Any) -> None:
        self.remote = remote


class Broadcast:
    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if not self.calls:
            raise DeploymentUnavailableError(DeploymentID("x", "y"))
        return await asyncio.wait_for(asyncio.gather(*self.calls, return_exceptions=return_exceptions), timeout_s)
