"""From the name in a request to the model that answers, and the one that is asked besides."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from cluster.errors import UserError
from cluster.recipe.serve import Alias, Served
from serve.errors import RequestError, json_body, while_connected
from serve.http.auth import Caller
from serve.http.limits import Queue
from serve.http.metrics import Meters, labels_of
from serve.http.openapi import PATHS
from serve.http.request_context import RequestContext
from serve.transport.messages import Endpoint, Part, Reply, ResponseStart, Usage
from serve.transport.pool import ModelEndpoint


@dataclass(frozen=True)
class Route:
    """Who is asked: a model, and perhaps another one whose answer goes nowhere."""

    model: str
    shadow: str | None = None


class Routes:
    """The names that clients may use: the models' own, and aliases, whose requests are shared out by chance.

    Args:
        models: the names of those that are served.
        aliases: more names.
        chance: whose turn it is.
    """

    def __init__(self, models: Collection[str], aliases: Mapping[str, Alias], chance: random.Random) -> None:
        self._models, self._aliases, self._chance = models, aliases, chance

    def find(self, name: Any) -> Route:
        """The route of one request.

        Raises:
            RequestError: no model is served by this name, or no name is given.
        """
        served = ", ".join([*self._models, *self._aliases])
        if not isinstance(name, str) or not name:
            raise RequestError(
                400, f"name the model to ask in the field `model`; served are {served}", "BadRequestError", "model"
            )
        if alias := self._aliases.get(name):
            (model,) = self._chance.choices(list(alias.models), list(alias.models.values()))
            return Route(model, alias.shadow)
        if name not in self._models:
            raise RequestError(404, f"the model `{name}` is not served; served are {served}", "NotFoundError", "model")
        return Route(name)


def aliases_of(models: Collection[Served], given: Mapping[str, Alias]) -> dict[str, Alias]:
    """The recipe's, and `latest`: the model that has gone furthest through the stages that make one write.

    Args:
        models: those that are served, in the order of the stages.
        given: the recipe's.

    Raises:
        UserError: the recipe names a model that is not served.
    """
    for name, alias in given.items():
        wanted = {*alias.models, *([alias.shadow] if alias.shadow else [])}
        if missing := sorted(wanted - set(models)):
            have = ", ".join(models)
            raise UserError(f"serve.aliases.{name} names {', '.join(missing)}; the run has finished only {have}")
    writing = [name for name in models if name != "reward"]
    return ({"latest": Alias(models={writing[-1]: 1})} if writing else {}) | dict(given)


# From a request to the answer of the model that it is routed to.
WEIGHTS_HEADER = "X-Triptych-Weights"
MODEL_HEADER = "X-Triptych-Model"
# Whom requests that no client waits for are counted for.
SHADOW = Caller("(shadow)")
Waiting = Callable[[Awaitable[Part]], Awaitable[Part]]


class Router:
    """Passes requests on to the models, and notes what came of them.

    Args:
        models: by their names.
        routes: the names that clients may use.
        queue: the most requests to one model at once.
        weights: the checksum of every model's weights; kept up to date by others.
        meters: where times and tokens are counted.
    """

    def __init__(
        self,
        models: Mapping[str, ModelEndpoint],
        routes: Routes,
        queue: int,
        weights: Mapping[str, str | None],
        meters: Meters,
    ) -> None:
        self._models, self._weights, self._meters = models, weights, meters
        self.routes = routes
        self._queue = Queue(queue)
        self._shadows: set[asyncio.Task[None]] = set()

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """The answer of the model that the request names: JSON, or server-sent events.

        `NAME@VERSION` names a version of the weights by its first digits: another one does not answer.
        """
        visit: RequestContext = request.state.visit
        body = await json_body(request)
        asked, pinned = _without_version(body.get("model"))
        route = self.routes.find(asked)
        if route.shadow:
            task = asyncio.create_task(self._shadow(endpoint, body | {"model": route.shadow}))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        visit.model = body["model"] = route.model
        return await self._ask(endpoint, body, pinned, visit, partial(while_connected, request))

    async def parts(self, visit: RequestContext, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """The parts of the answer of the model that the body names, for a visit that asks several.

        It takes a place in the model's queue, and its tokens are added to the visit's.

        Raises:
            RequestError: 503, the model has no place left or cannot be reached.
        """
        name, read, written = body["model"], 0, 0
        with self._queue.place(name), self._meters.running.labels(name).track_inprogress():
            try:
                async with aclosing(self._models[name].answer(endpoint, body)) as parts:
                    async for part in parts:
                        if isinstance(part, Usage):
                            read, written = part.prompt_tokens, part.completion_tokens
                        # Until the count comes, an event stands for a token.
                        written += isinstance(part, str)
                        yield part
            finally:
                visit.prompt_tokens += read
                visit.completion_tokens += written

    async def _shadow(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """Has a model answer for the sake of its figures: one that fails, or has no place left, is in nobody's way."""
        visit = RequestContext(uuid.uuid4().hex, "POST", PATHS[endpoint], time.monotonic(), SHADOW, body["model"])
        async with visit.held:
            try:
                answer = await self._ask(endpoint, body, "", visit, _as_it_is)
                if isinstance(answer, StreamingResponse):
                    async for _ in answer.body_iterator:
                        pass
                visit.status = answer.status_code
            except RequestError as error:
                visit.status = error.status_code
        self._meters.count(visit, PATHS[endpoint])

    async def _ask(
        self, endpoint: Endpoint, body: dict[str, Any], pinned: str, visit: RequestContext, waiting: Waiting
    ) -> Response:
        """The answer of the model of a visit; `waiting` may give up on what it waits for."""
        name = visit.model
        self._note_weights(visit, self._weights.get(name))
        visit.held.enter_context(self._queue.place(name))
        visit.held.enter_context(self._meters.running.labels(name).track_inprogress())
        parts = self._models[name].answer(endpoint, body)
        visit.held.push_async_callback(parts.aclose)
        first = await waiting(anext(parts))
        while isinstance(first, ResponseStart):
            self._note_weights(visit, first.weights)
            if not first.weights.startswith(pinned):
                message = f"{name} is served with the weights {first.weights}, not {pinned}"
                raise RequestError(404, message, "NotFoundError", "model")
            first = await waiting(anext(parts))
        if isinstance(first, Reply):
            self._note_weights(visit, first.weights)
            _note_usage(visit, first.body)
            return JSONResponse(first.body, first.status)
        return StreamingResponse(self._events(first, parts, visit), media_type="text/event-stream")

    def _note_weights(self, visit: RequestContext, weights: str | None) -> None:
        if weights or not visit.weights:
            visit.weights = weights or "unknown"
            visit.headers = {MODEL_HEADER: visit.model, WEIGHTS_HEADER: visit.weights}

    async def _events(self, first: Part, rest: AsyncGenerator[Part], visit: RequestContext) -> AsyncIterator[str]:
        labels = labels_of(visit)
        next_token = self._meters.next_token.labels(*labels)
        last = time.monotonic()
        self._meters.first_token.labels(*labels).observe(last - visit.start)
        # Until the count comes, an event stands for a token: a client that leaves pays for what it was sent.
        visit.completion_tokens = 1
        yield str(first)
        try:
            async for part in rest:
                if isinstance(part, Usage):
                    visit.prompt_tokens, visit.completion_tokens = part.prompt_tokens, part.completion_tokens
                    if part.weights:
                        # The header has been sent. A comment is in no client's way.
                        visit.weights = part.weights
                        yield f": {WEIGHTS_HEADER}: {part.weights}\n\n"
                    continue
                now = time.monotonic()
                next_token.observe(now - last)
                last = now
                visit.completion_tokens += 1
                yield str(part)
        except RequestError as error:
            # The status line has been sent: an error event is the only way left to say that it is not whole.
            yield f"data: {json.dumps(error.body)}\n\n"


async def _as_it_is(work: Awaitable[Part]) -> Part:
    return await work


def _without_version(name: Any) -> tuple[Any, str]:
    """`NAME@VERSION` in two; the version is empty where none is named."""
    if not isinstance(name, str):
        return name, ""
    model, _, version = name.partition("@")
    return model, version


def _note_usage(visit: RequestContext, body: Mapping[str, Any]) -> None:
    usage = body.get("usage") or {}
    visit.prompt_tokens = usage.get("prompt_tokens") or 0
    visit.completion_tokens = usage.get("completion_tokens") or 0
