"""A model behind an OpenAI-compatible address, under evaluation."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from cluster.errors import StageError, UserError
from cluster.run.folder import fingerprint
from pipelines.evaluate.tasks.models import Request

Value = TypeVar("Value")
# Requests open at once, how often one is sent while the server is busy, and the seconds before the second time.
AT_ONCE, SENDS, PAUSE_SECONDS = 16, 4, 0.5
# The text before a continuation without a prompt: servers give the very first token no log-probability.
BEFORE = "\n"
# A text whose log-probabilities identify the weights, and the digits that are the same in a second answer.
PROBE, PROBE_DIGITS = "The quick brown fox jumps over the lazy dog, and then", 3
WEIGHTS_HEADER = "X-Triptych-Weights"


@dataclass
class HttpModel:
    """A model that a server scores with `echo` and `logprobs` of its completions, as vLLM's does.

    Continuations are scored after the bare prompt, since a chat completion cannot be given its answer; answers are
    those of chat completions. The key is that of the environment variable OPENAI_API_KEY, if it is set.

    Attributes:
        address: the address, such as http://127.0.0.1:8000 or http://127.0.0.1:8000/v1.
        model: its name at the server.
        seconds: the most for one request.
        progress: called with the number of requests that were answered since the last call.
    """

    address: str
    model: str
    seconds: float = 120.0
    progress: Callable[[int], None] = field(default=lambda _: None)

    @classmethod
    def of(cls, address: str, model: str | None) -> "HttpModel":
        """Asks a server for its models; without a name, takes the only one.

        Raises:
            UserError: the server does not answer, or has several models.
        """
        found = cls(address.rstrip("/").removesuffix("/v1"), model or "")
        try:
            response = httpx.get(f"{found.address}/v1/models", headers=found._headers(), timeout=found.seconds)
            names = [one["id"] for one in response.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{address} does not list its models at /v1/models: {error}") from error
        if (model is None and len(names) != 1) or (model is not None and model not in names):
            raise UserError(f"{address} has the models {', '.join(names)}: name one with --model")
        found.model = model or names[0]
        return found

    def version(self) -> str:
        """Identifies the weights that the server answers with now, so that results of others are not taken for theirs.

        This project's servers name their weights in X-Triptych-Weights; of any other server it is a fingerprint of the
        log-probabilities of a text and of its greedy continuation, or of a greedy answer where the server only chats.

        Raises:
            StageError: the server does not answer.
        """

        async def ask() -> str:
            greedy = {"max_tokens": 8, "temperature": 0}
            async with httpx.AsyncClient(headers=self._headers(), timeout=self.seconds) as client:
                try:
                    body = {"prompt": PROBE, "echo": True, "logprobs": 1, **greedy}
                    response = await self._response(client, "completions", body)
                except StageError:
                    body = {"messages": [{"role": "user", "content": PROBE}], **greedy}
                    response = await self._response(client, "chat/completions", body)
            if told := response.headers.get(WEIGHTS_HEADER):
                return str(told)
            choice = response.json()["choices"][0]
            nats = (choice.get("logprobs") or {}).get("token_logprobs") or []
            said = choice.get("text") or choice.get("message")
            return fingerprint([said, [value and round(value, PROBE_DIGITS) for value in nats]])

        return asyncio.run(ask())

    @property
    def scores_chats(self) -> bool:
        return False

    @property
    def answers_chats(self) -> bool:
        return True

    def log_likelihoods(self, requests: Sequence[Request]) -> list[float | None]:
        return asyncio.run(self._all(requests, self._score))

    def answers(self, prompts: Sequence[str], chat: bool, max_tokens: int) -> list[str | None]:
        async def answer(client: httpx.AsyncClient, prompt: str) -> str | None:
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}
            found = await self._post(client, "chat/completions", body)
            return None if found is None else str(found["choices"][0]["message"]["content"] or "").strip()

        async def go_on(client: httpx.AsyncClient, prompt: str) -> str | None:
            body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
            found = await self._post(client, "completions", body)
            return None if found is None else str(found["choices"][0]["text"]).strip()

        return asyncio.run(self._all(prompts, answer if chat else go_on))

    async def _score(self, client: httpx.AsyncClient, request: Request) -> float | None:
        prompt = request.prompt or BEFORE
        text = prompt + request.continuation
        body = {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        found = await self._post(client, "completions", body)
        if found is None:
            return None
        table = found["choices"][0].get("logprobs")
        if not table or not table.get("text_offset"):
            raise UserError(
                f"{self.address} gives no log-probabilities of a prompt (echo with logprobs), as tasks need"
            )
        # The last token is the one that was generated. The space before a continuation may belong to its first token.
        begin, offsets = len(prompt.rstrip()), table["text_offset"]
        return sum(
            value
            for offset, value in zip(offsets, table["token_logprobs"], strict=True)
            if begin <= offset < len(text) and value is not None
        )

    async def _all(
        self, requests: Sequence[Any], ask: Callable[[httpx.AsyncClient, Any], Awaitable[Value]]
    ) -> list[Value]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(client: httpx.AsyncClient, request: Any) -> Value:
            async with gate:
                found = await ask(client, request)
            self.progress(1)
            return found

        async with httpx.AsyncClient(headers=self._headers(), timeout=self.seconds) as client:
            return await asyncio.gather(*(one(client, request) for request in requests))

    async def _post(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Posts a request. Returns None where the server says that it is too long."""
        response = await self._response(client, path, body)
        content: dict[str, Any] | None = response.json() if response.is_success else None
        return content

    async def _response(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
        """Posts a request until it is answered, or refused as too long (status 400).

        Raises:
            StageError: it is not answered, or refused for another reason.
        """
        how = ""
        for attempt in range(SENDS):
            if attempt:
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                response = await client.post(f"{self.address}/v1/{path}", json={"model": self.model, **body})
            except httpx.HTTPError as error:
                how = f"{type(error).__name__} {error}".strip()
                continue
            too_long = response.status_code == 400 and ("context" in response.text or "maximum" in response.text)
            if response.is_success or too_long:
                return response
            how = f"status {response.status_code}: {response.text[:200]}"
            if response.status_code != 429 and response.status_code < 500:
                break
        raise StageError(f"{self.address}/v1/{path} did not answer: {how}; the same command goes on from the last task")

    def _headers(self) -> dict[str, str]:
        key = os.environ.get("OPENAI_API_KEY")
        return {"Authorization": f"Bearer {key}"} if key else {}
