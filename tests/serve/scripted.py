"""Models that say what they are told to, in the form in which the engines stream it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from serve.replica import Reply


@dataclass(frozen=True)
class Scripted:
    """A model that streams `text` word by word, or refuses with `error`."""

    name: str
    text: str = ""
    chat: bool = True
    error: str | None = None
    pause: float = 0.0

    async def card(self) -> Mapping[str, Any]:
        return {"id": self.name, "chat": self.chat, "max_model_len": 256}

    async def weights(self) -> str:
        return f"weights of {self.name}"

    async def answer(self, chat: bool, body: dict[str, Any]) -> AsyncGenerator[Reply | str]:
        assert (body["model"], body["max_tokens"]) == (self.name, 128)
        assert ("messages" in body) == chat == self.chat
        if self.error:
            yield Reply(400, {"error": {"message": self.error}})
            return
        for word in self.text.split(" "):
            await asyncio.sleep(self.pause)
            part = {"delta": {"content": f"{word} "}} if chat else {"text": f"{word} "}
            yield f"data: {json.dumps({'model': self.name, 'choices': [part]})}\n\n"
        yield "data: [DONE]\n\n"
