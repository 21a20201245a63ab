"""The OpenAI routes: a request goes to the model that its name stands for, and its response parts become HTTP."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serve.errors import RequestError, in_format_of
from serve.http.auth import Caller
from serve.http.budgets import BudgetError
from serve.http.limits import ConcurrencyLimit
from serve.http.metrics import GatewayMetrics, label_values
from serve.http.openapi import GET_ENDPOINTS, PATHS
from serve.http.request_context import RequestContext, json_body, while_connected
from serve.recording import CONSENT_HEADER, Recorder
from serve.request_size import check_size, counting_requests, most_tokens, without_prompts
from serve.routes import LATEST, Routes
from serve.transport.messages import CompleteResponse, Endpoint, Part, ResponseStart, Usage
from serve.transport.pool import ModelEndpoint

WEIGHTS_HEADER = "X-Triptych-Weights"
MODEL_HEADER = "X-Triptych-Model"
# Unknown fields of a request, which are ignored as in vLLM's own server: clients send fields of newer APIs.
IGNORED_HEADER = "X-Triptych-Ignored-Fields"
NOTE_HEADER = "X-Triptych-Note"
MAX_HEADER = 500
# Endpoints that clients such as lm-eval call without a model's name; the models of a run share a tokenizer.
NAMELESS = frozenset[Endpoint]({"tokenize", "detokenize", "tokenizer_info"})
# The caller of requests to shadow models, in the metrics.
SHADOW = Caller("(shadow)")


# Waits for a response part, and may give up.
Wait = Callable[[Awaitable[Part]], Awaitable[Part]]


class Router:
    """Sends requests to the models and turns their responses into HTTP.

    Args:
        models: the models by name.
        routes: the names that clients may use.
        max_concurrent: the most requests of one model at once.
        weights: the version of every model's weights; the admin routes update it.
        metrics: count times and tokens.
        context: the most tokens of a request, prompt and answer together.
        recorder: stores prompts; None for none.
    """

    def __init__(
        self,
        models: Mapping[str, ModelEndpoint],
        routes: Routes,
        max_concurrent: int,
        weights: Mapping[str, str | None],
        metrics: GatewayMetrics,
        context: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._models, self._routes, self._weights, self._metrics = models, routes, weights, metrics
        self._context = context
        self._limit = ConcurrencyLimit(max_concurrent)
        self._shadows: set[asyncio.Task[None]] = set()

    def api(self) -> APIRouter:
        """Returns the OpenAI routes."""
        api = APIRouter()

        @api.get("/v1/models")
        async def list_models() -> dict[str, Any]:
            models = [model.card() for model in self._models.values()]
            aliases = [self._alias_card(name) for name in self._routes.aliases]
            return {"object": "list", "data": await asyncio.gather(*models, *aliases)}

        @api.get("/v1/models/{name}")
        async def get_model(name: str) -> dict[str, Any]:
            if name in self._routes.aliases:
                return await self._alias_card(name)
            return await self._models[self._routes.find(name).model].card()

        def add(endpoint: Endpoint, path: str) -> None:
            @api.post(path, name=endpoint)
            async def answer(request: Request) -> Response:
                return await self.answer(endpoint, request)

        def add_get(endpoint: Endpoint, path: str) -> None:
            @api.get(path, name=endpoint)
            async def answer(request: Request) -> Response:
                body = {"model": model} if (model := request.query_params.get("model")) else {}
                return await self._answer(endpoint, body, request)

        for endpoint, path in PATHS.items():
            (add_get if endpoint in GET_ENDPOINTS else add)(endpoint, path)

        @api.post("/v1/embeddings")
        async def no_embeddings() -> None:
            raise RequestError(404, "the models of this server write and score; none makes embeddings", "NotFoundError")

        return api

    async def _alias_card(self, name: str) -> dict[str, Any]:
        """Returns an alias's entry in `/v1/models`: the smallest context of its models, and their shares."""
        shares = self._routes.aliases[name].models
        cards = await asyncio.gather(*(self._models[model].card() for model in shares))
        contexts = [card["max_model_len"] for card in cards if "max_model_len" in card]
        return cards[0] | {"id": name, "models": dict(shares)} | ({"max_model_len": min(contexts)} if contexts else {})

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """Returns the response of the model that a request names: JSON, or server-sent events.

        `NAME@VERSION` requires a version of the weights by the beginning of its checksum: any other one answers 404.
        """
        return await self._answer(endpoint, await json_body(request), request)

    async def _answer(self, endpoint: Endpoint, body: dict[str, Any], request: Request) -> Response:
        context: RequestContext = request.state.context
        if endpoint in NAMELESS:
            body.setdefault("model", LATEST)
        name, version = _split_version(body.get("model"))
        route = self._routes.find(name, "" if version else context.id)
        check_size(without_prompts(endpoint, body), self._context)
        await self._reserve(endpoint, body, route.model, context)
        if route.shadow:
            task = asyncio.create_task(self._shadow(endpoint, body | {"model": route.shadow}))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        context.model = body["model"] = route.model
        response = await self._forward(endpoint, body, version, context, partial(while_connected, request))
        if self._recorder and response.status_code == HTTPStatus.OK:
            self._recorder.record(endpoint, body, request.headers.get(CONSENT_HEADER, ""), context)
        return response

    async def _reserve(self, endpoint: Endpoint, body: dict[str, Any], model: str, context: RequestContext) -> None:
        """Reserves the most tokens that a request may use.

        Raises:
            RequestError: 429, the caller's key has fewer left.
        """
        try:
            context.reserve(most_tokens(endpoint, body, self._context))
        except BudgetError as error:
            # By its bytes a prompt has more tokens than it really has: counted exactly, it may still fit.
            counts = await self._count_prompts(endpoint, body, model) if error.left else None
            if counts is None:
                raise
            context.reserve(most_tokens(endpoint, body, self._context, counts))

    async def _count_prompts(self, endpoint: Endpoint, body: dict[str, Any], model: str) -> list[int] | None:
        """Returns the tokens of each prompt as the model counts them; None if it cannot count them."""
        requests = counting_requests(endpoint, body)
        if requests is None:
            return None
        counts = []
        for counting, request in requests:
            async with aclosing(self._models[model].answer(counting, request | {"model": model})) as parts:
                replies = [part.body async for part in parts if isinstance(part, CompleteResponse)]
            count = replies[0].get("count", replies[0].get("input_tokens")) if replies else None
            if not isinstance(count, int):
                return None
            counts.append(count)
        return counts

    async def response_parts(
        self, context: RequestContext, endpoint: Endpoint, body: dict[str, Any]
    ) -> AsyncGenerator[Part]:
        """Yields the response parts of the model that the body names, for a request that needs several models.

        It takes a slot of the model, and its tokens are added to those of the request.

        Raises:
            RequestError: 503, the model has no free slot or cannot be reached.
        """
        name, read, written = body["model"], 0, 0

        async def count_rest(used: Awaitable[Usage | None]) -> None:
            if usage := await used:
                context.prompt_tokens += usage.prompt_tokens - read
                context.completion_tokens += usage.completion_tokens - written

        def given_up(used: Awaitable[Usage | None]) -> None:
            context.cleanup.push_async_callback(count_rest, used)

        with self._limit.slot(name), self._metrics.running.labels(name).track_inprogress():
            try:
                async with aclosing(self._models[name].answer(endpoint, body, given_up)) as parts:
                    async for part in parts:
                        if isinstance(part, Usage):
                            read, written = part.prompt_tokens, part.completion_tokens
                        # Until the usage arrives, an event counts as a token.
                        written += isinstance(part, str)
                        yield part
            finally:
                context.prompt_tokens += read
                context.completion_tokens += written

    async def _shadow(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """Requests an answer from a shadow model, for the metrics alone. Its failure, or a model without a free slot,
        disturbs no client."""
        context = RequestContext(uuid.uuid4().hex, "POST", PATHS[endpoint], time.monotonic(), SHADOW, body["model"])
        async with context.cleanup:
            try:
                response = await self._forward(endpoint, body, "", context, _wait)
                if isinstance(response, StreamingResponse):
                    async for _ in response.body_iterator:
                        pass
                context.status = response.status_code
            except RequestError as error:
                context.status = error.status_code
        self._metrics.count(context, PATHS[endpoint])

    async def _forward(
        self, endpoint: Endpoint, body: dict[str, Any], version: str, context: RequestContext, wait: Wait
    ) -> Response:
        name = context.model
        self._set_weights(context, self._weights.get(name))
        context.cleanup.enter_context(self._limit.slot(name))
        context.cleanup.enter_context(self._metrics.running.labels(name).track_inprogress())

        async def count(used: Awaitable[Usage | None]) -> None:
            if usage := await used:
                context.count(usage)

        def given_up(used: Awaitable[Usage | None]) -> None:
            context.cleanup.push_async_callback(count, used)

        parts = self._models[name].answer(endpoint, body, given_up)
        context.cleanup.push_async_callback(parts.aclose)
        first = await wait(anext(parts))
        while isinstance(first, ResponseStart):
            self._set_weights(context, first.weights)
            if first.ignored:
                context.headers[IGNORED_HEADER] = _header_value(first.ignored)
            if first.note:
                context.headers[NOTE_HEADER] = first.note
            if not first.weights.startswith(version):
                message = f"{name} is served with the weights {first.weights}, not {version}"
                raise RequestError(404, message, "NotFoundError", "model")
            first = await wait(anext(parts))
        if isinstance(first, CompleteResponse):
            self._set_weights(context, first.weights)
            context.count(_usage(endpoint, body, first))
            failed = first.status >= HTTPStatus.BAD_REQUEST
            body = in_format_of(context.path, first.status, first.body) if failed else first.body
            return JSONResponse(body, first.status)
        return StreamingResponse(self._events(first, parts, context), media_type="text/event-stream")

    def _set_weights(self, context: RequestContext, weights: str | None) -> None:
        if weights or not context.weights:
            context.weights = weights or "unknown"
            context.headers |= {MODEL_HEADER: context.model, WEIGHTS_HEADER: context.weights}

    async def _events(self, first: Part, rest: AsyncGenerator[Part], context: RequestContext) -> AsyncIterator[str]:
        labels = label_values(context)
        next_token = self._metrics.next_token.labels(*labels)
        last = time.monotonic()
        self._metrics.first_token.labels(*labels).observe(last - context.start)
        # Until the usage arrives, an event counts as a token: a replica that dies says nothing more.
        context.completion_tokens = 1
        yield str(first)
        try:
            async for part in rest:
                if isinstance(part, Usage):
                    context.count(part)
                    if part.weights:
                        # The header has been sent already. Clients ignore comments.
                        context.weights = part.weights
                        yield f": {WEIGHTS_HEADER}: {part.weights}\n\n"
                    continue
                now = time.monotonic()
                next_token.observe(now - last)
                last = now
                context.completion_tokens += 1
                yield str(part)
        except RequestError as error:
            # The status line has been sent: only an error event can still say that the response is incomplete.
            body = in_format_of(context.path, error.status_code, error.body)
            event = "" if body is error.body else "event: error\n"
            yield f"{event}data: {json.dumps(body)}\n\n"


def _usage(endpoint: Endpoint, body: dict[str, Any], reply: CompleteResponse) -> Usage:
    """Returns the tokens of a complete response. Those of `/tokenize` and `/detokenize` count as a prompt's."""
    if endpoint == "detokenize" and reply.status == HTTPStatus.OK:
        return Usage(len(body["tokens"]), 0)
    usage = reply.body.get("usage") or {"prompt_tokens": reply.body.get("count") or reply.body.get("input_tokens")}
    read = usage.get("prompt_tokens") or usage.get("input_tokens")
    return Usage(read or 0, usage.get("completion_tokens") or usage.get("output_tokens") or 0)


async def _wait(work: Awaitable[Part]) -> Part:
    return await work


def _header_value(names: Iterable[str]) -> str:
    """Returns names from a request as the value of a header, percent-encoded, since they may hold any character."""
    return ", ".join(quote(name.encode(errors="replace")) for name in names)[:MAX_HEADER]


def _split_version(name: Any) -> tuple[Any, str]:
    """Splits `NAME@VERSION`; the version is empty if there is none."""
    if not isinstance(name, str):
        return name, ""
    model, _, version = name.partition("@")
    return model, version
