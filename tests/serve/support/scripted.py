"""Models with scripted answers, streamed in the engines' format."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from cluster.feedback import Feedback
from serve.http.auth import Authorizer
from serve.http.metrics import GatewayMetrics
from serve.http.middleware import Middleware
from serve.pages.compare import compare_router
from serve.router import Router
from serve.routes import Routes
from serve.transport.messages import CompleteResponse, Endpoint, EngineState, Part, PromotionResult, Usage
from serve.transport.pool import GivenUp, ignore


@dataclass(frozen=True)
class Scripted:
    """A model that streams `text` word by word, or refuses with `error`; with `score`, one that only scores."""

    name: str
    text: str = ""
    chat: bool = True
    error: str | None = None
    pause: float = 0.0
    score: bool = False

    async def card(self) -> dict[str, Any]:
        return {"id": self.name, "chat": self.chat, "score": self.score, "max_model_len": 256}

    async def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        return {}

    async def requests(self) -> list[int]:
        return []

    async def engine_states(self) -> list[EngineState]:
        return []

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        raise NotImplementedError(f"{folder} {weights}")

    async def answer(self, endpoint: Endpoint, body: dict[str, Any], _: GivenUp = ignore) -> AsyncGenerator[Part]:
        chat = endpoint == "chat/completions"
        assert (body["model"], body["max_tokens"]) == (self.name, 128)
        assert ("messages" in body) == chat == self.chat
        if self.error:
            yield CompleteResponse(400, {"error": {"message": self.error}})
            return
        for word in self.text.split(" "):
            await asyncio.sleep(self.pause)
            part = {"delta": {"content": f"{word} "}} if chat else {"text": f"{word} "}
            event = json.dumps({"model": self.name, "choices": [part]}, ensure_ascii=False)
            yield f"data: {event}\n\n"
        yield "data: [DONE]\n\n"
        yield Usage(3, 5)


def comparing(database: Feedback, *models: Scripted, on_trial: Callable[[], bool] = lambda: False) -> Middleware:
    """Returns the compare page over these models, assembled the same as in the gateway."""
    named = {model.name: model for model in models}
    weights = {name: f"weights of {name}" for name in named}
    meters = GatewayMetrics(weights)
    router = Router(named, Routes(named, {}, random.Random()), 256, weights, meters, 256)
    app = FastAPI()
    app.include_router(compare_router(database, named, weights, router.response_parts, on_trial=on_trial))
    return Middleware(app, Authorizer(None, "always"), meters, None)
