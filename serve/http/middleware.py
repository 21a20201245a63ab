"""What every request passes: who asks, how much, how large. Answers get a number, safe headers and a log line."""

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import UserError
from serve.errors import RequestError
from serve.http.auth import Access, bearer, rule_of
from serve.http.limits import MOST_BODY_BYTES, KeyLimits, bounded, too_large
from serve.http.metrics import Meters
from serve.http.request_context import RequestContext

logger = logging.getLogger("ray.serve")

LOG_BYTES = 10 << 20
LOG_FILES = 3
LONGEST_PATH = 200
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
# A page sets its own policy. Nothing else is to be shown, embedded, guessed at or kept.
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Middleware:
    """ASGI middleware around the whole application, so that no answer leaves without it.

    Args:
        app: the application.
        access: who is let in.
        meters: where requests are counted.
        log: the access log's file; None for no log.
    """

    def __init__(self, app: ASGIApp, access: Access, meters: Meters, log: Path | None) -> None:
        self.app, self._access, self._meters = app, access, meters
        self._limits = KeyLimits()
        self._log = access_log(log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        visit = RequestContext(_request_id(headers), scope["method"], scope["path"], time.monotonic())
        scope.setdefault("state", {})["visit"] = visit

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                _add_headers(message, visit)
            await send(message)

        try:
            async with visit.held:
                await self._answer(visit, headers, scope, receive, send_safely)
        finally:
            self._account(visit)

    async def _answer(
        self, visit: RequestContext, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            try:
                self._admit(visit, headers)
            except UserError as error:
                logger.error("request %s was turned away: %s", visit.id, error)
                raise RequestError(503, "the keys of this server cannot be read; its log says why") from error
        except RequestError as error:
            await JSONResponse(error.body, error.status_code, error.headers)(scope, receive, send)
        else:
            await self.app(scope, bounded(receive), send)

    def _admit(self, visit: RequestContext, headers: Mapping[str, str]) -> None:
        visit.caller = self._access.admit(visit.path, bearer(headers.get("authorization", "")), headers.get("host", ""))
        if visit.caller.key:
            self._limits.enter(visit.caller.key)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > MOST_BODY_BYTES:
            raise too_large()

    def _account(self, visit: RequestContext) -> None:
        tokens = visit.prompt_tokens + visit.completion_tokens
        if visit.caller.key and tokens:
            self._limits.spend(visit.caller.key, tokens)
        seconds = time.monotonic() - visit.start
        self._meters.count(visit, rule_of(visit.path))
        # As JSON, in which a line break in a path is two characters: nobody can add a line of their own.
        line = {
            "time": round(time.time(), 3),
            "request": visit.id,
            "key": visit.caller.name,
            "method": visit.method,
            "path": visit.path[:LONGEST_PATH],
            "status": visit.status,
            "model": visit.model,
            "weights": visit.weights,
            "prompt_tokens": visit.prompt_tokens,
            "completion_tokens": visit.completion_tokens,
            "seconds": round(seconds, 4),
        }
        self._log.info(json.dumps(line))


def access_log(path: Path | None) -> logging.Logger:
    """A logger of its own that writes to a file, which is renamed when it is full; the oldest goes."""
    # Made directly and not by `getLogger`: it belongs to one door, not to the process.
    logger = logging.Logger("access")
    if path is None:
        logger.addHandler(logging.NullHandler())
    else:
        logger.addHandler(RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"))
    return logger


def _request_id(headers: Mapping[str, str]) -> str:
    """The number that the request came with, if it can do no harm in a header or a log; else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _add_headers(message: Message, visit: RequestContext) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in SAFE_HEADERS.items():
        headers.setdefault(name, value)
    headers.update(visit.headers)
    headers["X-Request-Id"] = visit.id
