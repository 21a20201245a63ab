"""A model replica: what the gateway calls on a model. Importing this file does not import vLLM."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.plan import Share

if TYPE_CHECKING:
    from serve.engine import Engine

Endpoint = Literal["chat/completions", "completions", "tokenize", "detokenize", "score"]


@dataclass(frozen=True)
class Reply:
    """A whole answer, as opposed to a stream of server-sent events."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens of a stream, after its last event."""

    prompt_tokens: int
    completion_tokens: int


Part = Reply | Usage | str


def engine_environment(share: Share) -> dict[str, str]:
    """Environment variables that a replica's process must have before vLLM is imported."""
    common = {"OMP_NUM_THREADS": str(share.threads), "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if share.gpus:
        return common
    # No process of its own for vLLM's worker, and engines that share the cores instead of each binding all of them.
    return common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Replica:
    """Serves one model as a Ray Serve deployment."""

    engine: "Engine"

    def __init__(self, name: str, model: Path, context: int, share: Share) -> None:
        # It would override the size of the cache that the engine's arguments set.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        from serve.engine import Engine

        self.engine = Engine(name, model, context, share)

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncIterator[Part]:
        """Answers one OpenAI request: a single `Reply`, or server-sent events as text and then their `Usage`.

        Closing the iterator aborts the request in the engine.
        """
        async for part in self.engine.answer(endpoint, body):
            yield part

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
