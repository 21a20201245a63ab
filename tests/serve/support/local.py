"""The gateway without Ray and without an engine, for tests of everything before the model."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from serve.gateway import GatewaySettings, build_gateway
from serve.http.middleware import Middleware
from serve.peers import Peers
from serve.transport.messages import CompleteResponse, Endpoint, EngineState, Part, PromotionResult, Usage
from serve.transport.pool import GivenUp, ModelEndpoint, ignore


def gateway_app(models: Mapping[str, ModelEndpoint], settings: GatewaySettings) -> Middleware:
    """Returns the HTTP application of a server's only gateway, whose replicas have no states to show."""
    return build_gateway(models, settings, dict[str, dict[str, str]], Peers(["gateway"], 0, "")).asgi


class Parrot:
    """A model that repeats the prompt word by word; on the prompts "wait" and "fail" it waits or fails.

    Of a request that is given up while it waits it has computed the prompt and 5 tokens.
    """

    def __init__(self) -> None:
        self.ended = 0
        self.go_on, self.waits = asyncio.Event(), asyncio.Event()

    async def answer(
        self, endpoint: Endpoint, body: dict[str, Any], given_up: GivenUp = ignore
    ) -> AsyncGenerator[Part]:
        said = body["messages"][-1]["content"] if "messages" in body else body.get("prompt", "")
        words = str(said).split()
        try:
            if words == ["fail"]:
                raise ZeroDivisionError("secret /etc/passwd")
            if words == ["wait"]:
                self.waits.set()
                try:
                    await self.go_on.wait()
                except asyncio.CancelledError:
                    used = asyncio.get_running_loop().create_future()
                    used.set_result(Usage(len(words), 5))
                    given_up(used)
                    raise
            if not body.get("stream"):
                usage = {"prompt_tokens": len(words), "completion_tokens": len(words)}
                yield CompleteResponse(200, {"endpoint": endpoint, "usage": usage})
                return
            for word in words:
                yield f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n"
            yield Usage(len(words), 7)
        finally:
            self.ended += 1

    async def card(self) -> dict[str, Any]:
        return {"id": "parrot"}

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        return {"completions": {"type": "object", "$defs": {"Stop": {"type": "string"}}}}

    async def requests(self) -> list[int]:
        return [0]

    async def engine_states(self) -> list[EngineState]:
        return []

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        raise NotImplementedError(f"{folder} {weights}")


@asynccontextmanager
async def asking(
    settings: GatewaySettings,
    model: Parrot | None = None,
    key: str | None = None,
    name: str = "parrot",
    others: Mapping[str, Parrot] = MappingProxyType({}),
) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a gateway over one model, and others."""
    app = gateway_app({name: model or Parrot(), **others}, settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        yield client


def prompt(words: str, **options: Any) -> dict[str, Any]:
    return {"model": "parrot", "prompt": words, **options}
