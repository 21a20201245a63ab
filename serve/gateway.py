"""The one HTTP door: OpenAI's paths, routed by the `model` field to that model's replica, and the pages."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from cluster.feedback import open_feedback
from cluster.keys import Key
from cluster.run import RunFolder
from serve.access import Access, Openness
from serve.admin import admin_router
from serve.body import json_body, while_connected
from serve.channel import Inbox
from serve.compare import compare_router
from serve.door import Door, Visit
from serve.errors import RequestError, error_body
from serve.label import label_router
from serve.limits import Queue
from serve.lines import Lines
from serve.listener import Listener
from serve.meters import Meters
from serve.openapi import PATHS, openapi
from serve.page import page
from serve.parts import Endpoint, Opening, Part, Reply, Usage
from serve.remote import Model, RemoteModel
from serve.runs import runs_router

logger = logging.getLogger("ray.serve")

READY_SECONDS = 5.0
WEIGHTS_HEADER = "X-Triptych-Weights"
MODEL_HEADER = "X-Triptych-Model"


@dataclass(frozen=True)
class Settings:
    """What the gateway is told besides the models.

    Attributes:
        run: the run folder: its keys, its logs and what its page shows; None for models that belong to no run.
        feedback_url: the database behind the label page; without one there is no such page.
        openness: whether requests without a key are let in.
        queue: the most requests to one model at once.
        weights: the checksum of every model's weights when the server starts.
        aliases: more names of models.
        owner: the key of whoever started the server.
    """

    run: Path | None = None
    feedback_url: str | None = None
    openness: Openness = "until a key is made"
    queue: int = 256
    weights: Mapping[str, str | None] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    owner: Key | None = None


def gateway_app(models: Mapping[str, Model], settings: Settings) -> ASGIApp:
    """The HTTP application, in which every request passes the `Door`."""
    access = Access(settings.run, settings.openness, settings.owner)
    weights = {name: settings.weights.get(name) for name in models}
    meters = Meters(weights)
    board = Switchboard(models, settings, weights, meters)
    # Without redirects of a path with a slash too many: they would repeat the client's own `Host` header.
    app = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_unexpected)

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        return page("chat.html")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        states = dict(zip(models, await asyncio.gather(*map(_state, models.values())), strict=True))
        whole = all(state["status"] != "unreachable" for state in states.values())
        return JSONResponse({"status": "ok" if whole else "unhealthy", "models": states}, 200 if whole else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(meters.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": await asyncio.gather(*(model.card() for model in models.values()))}

    @app.get("/v1/models/{name}")
    async def get_model(name: str) -> dict[str, Any]:
        return await models[board.named(name)].card()

    def add(endpoint: Endpoint, path: str) -> None:
        @app.post(path, name=endpoint)
        async def ask(request: Request) -> Response:
            return await board.answer(endpoint, request)

    for endpoint, path in PATHS.items():
        add(endpoint, path)

    @app.get("/openapi.json")
    async def describe() -> dict[str, Any]:
        schemas: dict[Endpoint, dict[str, Any]] = {}
        for one in await asyncio.gather(*(model.schemas() for model in models.values())):
            schemas |= one
        return openapi(schemas)

    if settings.feedback_url:
        database = open_feedback(settings.feedback_url)
        app.include_router(label_router(database, known=access.labeller))
        app.include_router(compare_router(database, models, weights, access.labeller))
    if settings.run:
        app.include_router(runs_router(settings.run))
        app.include_router(admin_router(RunFolder(settings.run), models, weights, meters))
    return Door(app, access, meters, settings.run / "access.jsonl" if settings.run else None)


class Gateway:
    """The gateway as a Ray Serve deployment. It listens itself: Serve's proxy would be one more way for every token.

    Args:
        deployments: the models' deployments, and the names of the models of each.
        settings: what else the gateway is told.
        host: the address to listen on.
        port: the port to listen on.
        stop_seconds: for answers that are being written when it ends.
        may_sleep: whether models may have no replica for a while.
    """

    async def __init__(  # type: ignore[misc]
        self,
        deployments: Sequence[tuple[DeploymentHandle, list[str]]],
        settings: Settings,
        host: str,
        port: int,
        stop_seconds: float,
        may_sleep: bool,
    ) -> None:
        self._inbox = Inbox()
        await self._inbox.open(ray.util.get_node_ip_address())
        models: dict[str, Model] = {}
        self._keeping = []
        for handle, names in deployments:
            lines = Lines(handle, self._inbox, may_sleep)
            models |= {name: RemoteModel(lines, name) for name in names}
            self._keeping.append(asyncio.create_task(lines.keep()))
        self._listener = Listener(gateway_app(models, settings), host, port, stop_seconds)

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a gateway that raises."""
        if not self._listener.is_open():
            raise RuntimeError("the HTTP listener has ended")

    async def __del__(self) -> None:
        # Ray Serve's hook at shutdown. Replicas finish what they are asked as long as they are connected.
        for task in self._keeping:
            task.cancel()
        await self._listener.close()
        self._inbox.close()


class Switchboard:
    """Passes requests on to the models, and notes what came of them."""

    def __init__(
        self, models: Mapping[str, Model], settings: Settings, weights: Mapping[str, str | None], meters: Meters
    ) -> None:
        self._models, self._aliases, self._weights, self._meters = models, settings.aliases, weights, meters
        self._queue = Queue(settings.queue)

    def named(self, name: Any) -> str:
        """The name of a model that is served, by that name or an alias.

        Raises:
            RequestError: it is not, or no name is given.
        """
        served = ", ".join([*self._models, *self._aliases])
        if not isinstance(name, str) or not name:
            raise RequestError(
                400, f"name the model to ask in the field `model`; served are {served}", "BadRequestError", "model"
            )
        found = self._aliases.get(name, name)
        if found not in self._models:
            raise RequestError(404, f"the model `{name}` is not served; served are {served}", "NotFoundError", "model")
        return found

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """The answer of the model that the request names: JSON, or server-sent events.

        `NAME@VERSION` names a version of the weights by its first digits: another one does not answer.
        """
        visit: Visit = request.state.visit
        body = await json_body(request)
        asked, pinned = _without_version(body.get("model"))
        name = visit.model = body["model"] = self.named(asked)
        self._note_weights(visit, self._weights.get(name))
        visit.held.enter_context(self._queue.place(name))
        visit.held.enter_context(self._meters.running.labels(name).track_inprogress())
        parts = self._models[name].answer(endpoint, body)
        visit.held.push_async_callback(parts.aclose)
        first = await while_connected(request, anext(parts))
        while isinstance(first, Opening):
            self._note_weights(visit, first.weights)
            if not first.weights.startswith(pinned):
                message = f"{name} is served with the weights {first.weights}, not {pinned}"
                raise RequestError(404, message, "NotFoundError", "model")
            first = await while_connected(request, anext(parts))
        if isinstance(first, Reply):
            self._note_weights(visit, first.weights)
            _note_usage(visit, first.body)
            return JSONResponse(first.body, first.status)
        return StreamingResponse(self._events(first, parts, visit), media_type="text/event-stream")

    def _note_weights(self, visit: Visit, weights: str | None) -> None:
        if weights or not visit.weights:
            visit.weights = weights or "unknown"
            visit.headers = {MODEL_HEADER: visit.model, WEIGHTS_HEADER: visit.weights}

    async def _events(self, first: Part, rest: AsyncGenerator[Part], visit: Visit) -> AsyncIterator[str]:
        labels = (visit.caller.name, visit.model)
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


def _without_version(name: Any) -> tuple[Any, str]:
    """`NAME@VERSION` in two; the version is empty where none is named."""
    if not isinstance(name, str):
        return name, ""
    model, _, version = name.partition("@")
    return model, version


def _note_usage(visit: Visit, body: Mapping[str, Any]) -> None:
    usage = body.get("usage") or {}
    visit.prompt_tokens = usage.get("prompt_tokens") or 0
    visit.completion_tokens = usage.get("completion_tokens") or 0


async def _state(model: Model) -> dict[str, Any]:
    try:
        requests = await asyncio.wait_for(model.requests(), READY_SECONDS)
    except (RequestError, TimeoutError):
        return {"status": "unreachable"}
    # One that sleeps has none: the next request has one started.
    return {"status": "ok" if requests else "asleep", "replicas": len(requests), "requests": sum(requests)}


async def _request_error(_: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error.body, error.status_code, error.headers)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(error.status_code, message, "NotFoundError"), error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    number = request.state.visit.id
    logger.error("request %s failed", number, exc_info=error)
    message = f"something went wrong in the server; its log says what, under {number}"
    return JSONResponse(error_body(500, message, "InternalServerError"), 500)
