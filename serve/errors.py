"""Errors as OpenAI's clients read them; the same shape that vLLM answers with."""

import asyncio
import json
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException


def error_body(status: int, message: str, kind: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do.
        kind: OpenAI's `type`; by default the status's name.
        param: the field of the request that is wrong.
    """
    kind = kind or HTTPStatus(status).phrase.title().replace(" ", "") + "Error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


class RequestError(HTTPException):
    """A request that the gateway itself turns down.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do.
        kind: as `error_body`.
        param: as `error_body`.
        wait: seconds after which it may be tried again, for `Retry-After`.
    """

    def __init__(
        self, status: int, message: str, kind: str | None = None, param: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(status, message, {"Retry-After": str(wait)} if wait is not None else None)
        self.body = error_body(status, message, kind, param)


# The body of a request, or what is wrong with it; and what may take as long as the client waits for it.
T = TypeVar("T")
# As web servers note it in their logs; nobody reads the answer.
CLIENT_GONE = 499


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent.

    Raises:
        RequestError: it is none: 400, or 415 for another content type.
    """
    # Other content types can be sent by any web page without asking the browser first (CORS "simple requests").
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "send the request as application/json", "UnsupportedMediaTypeError")
    raw = await request.body()
    try:
        body = json.loads(raw, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():
            # An escape for half a character gives a text that cannot be sent or tokenized.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request body is not valid JSON: {_reason(error)}", "BadRequestError") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the request body must be a JSON object", "BadRequestError")
    return body


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of some work on a request whose body has been read. The work is cancelled when the client goes.

    Raises:
        RequestError: 499, it has gone.
    """
    working, gone = asyncio.ensure_future(work), asyncio.create_task(_until_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError(CLIENT_GONE, "the client closed the connection", "ClientClosedError")
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))


async def _until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _reason(error: Exception) -> str:
    # Python's own words show the bytes that it could not read; they would be repeated to the client and in logs.
    return "the text is not valid Unicode" if isinstance(error, UnicodeError) else str(error)
