"""A model replica: what the gateway calls on a model. Importing this file does not import vLLM."""

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.plan import Share
from cluster.versions import live_version
from serve.channel import Address, Outbox
from serve.parts import Endpoint, Part, Promoted

if TYPE_CHECKING:
    from serve.engine import Engine


def engine_environment(share: Share) -> dict[str, str]:
    """Environment variables that a replica's process must have before vLLM is imported."""
    common = {"OMP_NUM_THREADS": str(share.threads), "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if share.gpus:
        return common
    # No process of its own for vLLM's worker, and engines that share the cores instead of each binding all of them.
    return common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Sender(ABC):
    """What replicas of every kind have: their answers go to the gateway over a channel."""

    def __init__(self) -> None:
        self._outbox = Outbox()

    @abstractmethod
    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Answers one request: an `Opening`, then a single `Reply`, or server-sent events as text and their `Usage`.

        Closing the iterator ends the work on it.
        """

    async def answer_to(self, address: Address, number: int, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """Sends the parts of `answer` to a gateway, under the number that it gave the request."""
        writer = await self._outbox.to(address)
        async with aclosing(self.answer(endpoint, body)) as parts:
            async for part in parts:
                writer.send(number, part)
        writer.end(number)


class Replica(Sender):
    """Serves one model as a Ray Serve deployment.

    Args:
        name: what clients call the model.
        model: its directory, or that of its versions (`cluster.versions`), of which the live one is loaded.
        context: tokens a request may have.
        share: what this replica may use.
    """

    engine: "Engine"

    def __init__(self, name: str, model: Path, context: int, share: Share) -> None:
        super().__init__()
        # It would override the size of the cache that the engine's arguments set.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        from serve.engine import Engine

        live = live_version(model)
        self.engine = Engine(name, live.folder, live.weights, context, share)

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """See `Sender`."""
        async for part in self.engine.answer(endpoint, body):
            yield part

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """Takes over another version of the weights while it serves."""
        return await self.engine.promote(folder, weights)

    async def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""
        return await self.engine.card()

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        await self.engine.check_health()

    async def requests(self) -> int:
        """How many requests the engine is working on. Raises when it cannot answer any more."""
        await self.engine.check_health()
        return self.engine.requests()

    def __del__(self) -> None:
        # Ray Serve's hook at shutdown. On GPUs the engine core is a process of its own: it has to be told.
        self.engine.shutdown()
