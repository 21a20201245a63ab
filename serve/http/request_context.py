"""The state of one request while the server works on it, its JSON body, and whether its client is still connected."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from serve.errors import RequestError
from serve.http.auth import ANONYMOUS, Caller
from serve.transport.messages import Usage

T = TypeVar("T")
# The status that web servers log for a client that has disconnected, and so does not read it.
CLIENT_GONE = 499


def _unlimited(tokens: int) -> None:
    del tokens


@dataclass
class RequestContext:
    """One request in progress. The middleware creates it, and the router adds the model, weights and tokens.

    Attributes:
        id: the request id.
        start: the time of its arrival, by `time.monotonic`.
        reserve: reserves tokens of the caller's key for the request; raises a `RequestError`, 429, if it has too few.
        reserved: the tokens reserved so far.
        headers: additional headers for the response.
        cleanup: closed when the request has ended, for whatever reason.
    """

    id: str
    method: str
    path: str
    start: float
    caller: Caller = ANONYMOUS
    model: str = ""
    weights: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    reserve: Callable[[int], None] = _unlimited
    reserved: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cleanup: AsyncExitStack = field(default_factory=AsyncExitStack)

    def count(self, usage: Usage) -> None:
        """Records the tokens of the request's only model."""
        self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens


async def json_body(request: Request) -> dict[str, Any]:
    """Returns the JSON object in a request's body.

    Raises:
        RequestError: 400, it is not a JSON object; 415, the content type is another one.
    """
    # Any web page can send other content types without a preflight (the "simple requests" of CORS).
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "send the request as application/json", "UnsupportedMediaTypeError")
    raw = await request.body()
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
        if b"\\ud" in raw.lower():
            # An escaped half of a surrogate pair gives a text that can be neither sent nor tokenized.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request body is not valid JSON: {_reason(error)}", "BadRequestError") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the request body must be a JSON object", "BadRequestError")
    return body


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Returns the result of some work for a request whose body has been read, or cancels it if the client disconnects.

    Raises:
        RequestError: 499, the client has disconnected.
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _reason(error: Exception) -> str:
    # Python's message quotes the bytes that it could not decode; it would repeat them to the client and in logs.
    return "the text is not valid Unicode" if isinstance(error, UnicodeError) else str(error)
