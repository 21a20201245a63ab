"""The one HTTP door: OpenAI's paths, routed by the `model` field to that model's replica, and the pages."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.exceptions import HTTPException

from cluster.feedback import open_feedback
from serve.compare import ServedModel, compare_router
from serve.label import label_router
from serve.page import page
from serve.replica import Endpoint, Reply

logger = logging.getLogger("ray.serve")

EVENTS = "text/event-stream"
HEALTH_SECONDS = 5.0


def error_body(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it; the same shape that vLLM answers with."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


class RequestError(Exception):
    """A request that the gateway itself turns down."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, kind, param)


def gateway_app(models: Mapping[str, DeploymentHandle], feedback_url: str | None = None) -> FastAPI:
    """The HTTP application over one replica handle a model, with the label page where there is a database for it."""
    app = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None)
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(HTTPException)(_http_error)

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        return page("chat.html")

    @app.get("/health")
    async def health() -> JSONResponse:
        states = dict(zip(models, await asyncio.gather(*(_state(handle) for handle in models.values())), strict=True))
        healthy = all(state["status"] == "ok" for state in states.values())
        return JSONResponse({"status": "ok" if healthy else "unhealthy", "models": states}, 200 if healthy else 503)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": await asyncio.gather(*(_card(handle) for handle in models.values()))}

    @app.get("/v1/models/{name}")
    async def get_model(name: str) -> dict[str, Any]:
        return await _card(_model_named(models, name))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _pass_on(models, "chat/completions", request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _pass_on(models, "completions", request)

    if feedback_url:
        database = open_feedback(feedback_url)
        app.include_router(label_router(database))
        app.include_router(compare_router(database, {name: ServedModel(handle) for name, handle in models.items()}))
    return app


class Gateway:
    """The gateway as a Ray Serve deployment."""

    def __init__(self, models: dict[str, DeploymentHandle], feedback_url: str | None = None) -> None:
        self.models, self.feedback_url = models, feedback_url

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return gateway_app(self.models, self.feedback_url)


async def _pass_on(models: Mapping[str, DeploymentHandle], endpoint: Endpoint, request: Request) -> Response:
    body = await _json_body(request)
    parts = _parts(_model_named(models, body.get("model")), endpoint, body)
    first = await anext(parts)
    if isinstance(first, Reply):
        await parts.aclose()
        return JSONResponse(first.body, first.status)
    return StreamingResponse(
        _events(first, parts), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _parts(handle: DeploymentHandle, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Reply | str]:
    stream = cast(DeploymentResponseGenerator, handle.options(stream=True).answer.remote(endpoint, body))
    try:
        with _unreachable():
            async for part in stream:
                yield part
    finally:
        # Reached early when the client has gone; the replica then aborts the request in its engine.
        stream.cancel()


async def _events(first: str, rest: AsyncGenerator[Reply | str]) -> AsyncIterator[str]:
    yield first
    async with aclosing(rest):
        try:
            async for event in rest:
                yield str(event)
        except RequestError as error:
            # The status line has been sent: an error event is the only way left to say that the answer is not whole.
            yield f"data: {json.dumps(error.body)}\n\n"


async def _card(handle: DeploymentHandle) -> dict[str, Any]:
    with _unreachable():
        return await handle.card.remote()


@contextmanager
def _unreachable() -> Iterator[None]:
    """Turns the failure of a replica into an answer that clients understand and may retry."""
    try:
        yield
    except TaskCancelledError:
        raise
    except (RayError, RayServeException) as error:
        logger.exception("a replica did not answer")
        message = "the model cannot be reached just now; try again"
        raise RequestError(503, message, "ServiceUnavailableError") from error


async def _json_body(request: Request) -> dict[str, Any]:
    # Other content types can be sent by any web page without asking the browser first (CORS "simple requests").
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "send the request as application/json", "UnsupportedMediaTypeError")
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the request body must be a JSON object")
    return body


def _model_named(models: Mapping[str, DeploymentHandle], name: Any) -> DeploymentHandle:
    served = ", ".join(models)
    if not isinstance(name, str) or not name:
        raise RequestError(400, f"name the model to ask in the field `model`; served are {served}", param="model")
    if name not in models:
        raise RequestError(404, f"the model `{name}` is not served; served are {served}", "NotFoundError", "model")
    return models[name]


async def _state(handle: DeploymentHandle) -> dict[str, Any]:
    try:
        requests = await asyncio.wait_for(handle.requests.remote(), HEALTH_SECONDS)
    except (RayError, RayServeException, TimeoutError) as error:
        return {"status": f"unreachable ({type(error).__name__})"}
    return {"status": "ok", "requests": requests}


async def _request_error(_: Request, error: RequestError) -> JSONResponse:
    return JSONResponse(error.body, error.status)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(error.status_code, message, "NotFoundError"), error.status_code)
