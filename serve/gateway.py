"""The one HTTP door: OpenAI's paths, routed by the `model` field to that model's replica, and the pages."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from cluster.feedback import open_feedback
from cluster.keys import Key
from cluster.recipe.serve import Alias
from cluster.run.folder import RunFolder
from serve.admin import admin_router
from serve.errors import RequestError, error_body
from serve.http.auth import Access, Openness
from serve.http.listener import Listener
from serve.http.metrics import Meters
from serve.http.middleware import Middleware
from serve.http.openapi import PATHS, openapi
from serve.pages.compare import compare_router
from serve.pages.label import label_router
from serve.pages.render import page, routes_of
from serve.pages.runs import runs_router
from serve.pages.thumbs import thumbs_router
from serve.replica.autoscaling import States, states_of
from serve.router import Router, Routes
from serve.transport.connection import ReplicaListener
from serve.transport.messages import Endpoint
from serve.transport.pool import ModelEndpoint, RemoteModel, ReplicaPool

logger = logging.getLogger("ray.serve")

READY_SECONDS = 5.0


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
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    owner: Key | None = None


def gateway_app(
    models: Mapping[str, ModelEndpoint], settings: Settings, states: Callable[[], States] = dict[str, dict[str, str]]
) -> ASGIApp:
    """The HTTP application, in which every request passes the `Middleware`.

    Args:
        models: by the names that clients use.
        settings: what else it is told.
        states: tells how the models' replicas are, if they have any.
    """
    access = Access(settings.run, settings.openness, settings.owner)
    weights = {name: settings.weights.get(name) for name in models}
    meters = Meters(weights)
    board = Router(models, Routes(models, settings.aliases, random.Random()), settings.queue, weights, meters)
    # Without redirects of a path with a slash too many: they would repeat the client's own `Host` header.
    app = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_unexpected)

    @app.get("/")
    async def chat_page(request: Request) -> HTMLResponse:
        return page("chat.html", routes_of(request.app))

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
        return await models[board.routes.find(name).model].card()

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
        app.include_router(label_router(database, known=access.annotator))
        app.include_router(compare_router(database, models, weights, board.parts, access.annotator))
        app.include_router(thumbs_router(database, models))
    if settings.run:
        app.include_router(runs_router(settings.run))
        app.include_router(admin_router(RunFolder(settings.run), models, weights, meters, states))
    return Middleware(app, access, meters, settings.run / "access.jsonl" if settings.run else None)


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
        self._inbox = ReplicaListener()
        await self._inbox.open(ray.util.get_node_ip_address())
        models: dict[str, ModelEndpoint] = {}
        self._keeping = []
        for handle, names in deployments:
            lines = ReplicaPool(handle, self._inbox, may_sleep)
            models |= {name: RemoteModel(lines, name) for name in names}
            self._keeping.append(asyncio.create_task(lines.keep()))
        states = states_of(serve.get_replica_context().app_name)
        self._listener = Listener(gateway_app(models, settings, states), host, port, stop_seconds)

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


async def _state(model: ModelEndpoint) -> dict[str, Any]:
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
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    number = request.state.visit.id
    logger.error("request %s failed", number, exc_info=error)
    message = f"something went wrong in the server; its log says what, under {number}"
    return JSONResponse(error_body(500, message, "InternalServerError"), 500)
