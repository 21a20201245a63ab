"""The FastAPI application of every server of the project, which answers all errors in the format of OpenAI's API, or of
Anthropic's."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.errors import RequestError, error_body, in_format_of

logger = logging.getLogger("ray.serve")


def new_application(title: str) -> FastAPI:
    """Returns an application without routes. It belongs into a `Middleware`, which gives every request its context."""
    # No redirects of paths with an additional slash: they would repeat the client's own `Host` header.
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(Exception)(_unexpected)
    return app


async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    return _response(request, error.status_code, error.body, error.headers)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _response(request, error.status_code, error_body(error.status_code, message), error.headers)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    # The input is left out: it may hold values that JSON cannot, NaN or half of a surrogate pair.
    problems = [(".".join(map(str, one["loc"][1:])), one["msg"]) for one in error.errors()[:5]]
    message = "; ".join(f"{where}: {what}" if where else what for where, what in problems)
    printable = message.encode("utf-8", "backslashreplace").decode()
    return _response(request, 422, error_body(422, printable, "UnprocessableEntityError", problems[0][0] or None))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    request_id = request.state.context.id
    logger.error("request %s failed", request_id, exc_info=error)
    message = f"something went wrong in the server; its log says what, under {request_id}"
    # The HTTP server closes the connection after an exception. A client that is not told might have sent its next
    # request there, and lose it.
    headers = {"Connection": "close"}
    return _response(request, 500, error_body(500, message, "InternalServerError"), headers)


def _response(
    request: Request, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(in_format_of(request.url.path, status, body), status, headers)
