"""ASGI middleware around all routes: authorization and limits on the way in; on the way out a request id, safe headers,
metrics and a line in the access log."""

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import UserError
from cluster.keys import Key
from cluster.run.atomic import make_private
from serve.errors import RequestError, in_format_of
from serve.http.auth import Authorizer, path_pattern, token_of
from serve.http.budgets import TokenBudgets
from serve.http.limits import MIN_BODY_BYTES, KeyLimits, KeyUse, body_too_large, bounded
from serve.http.metrics import GatewayMetrics
from serve.http.request_context import RequestContext

logger = logging.getLogger("ray.serve")

LOG_BYTES = 10 << 20
LOG_FILES = 3
MAX_PATH = 200
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
# Pages set their own policy. Any other response may not be rendered, embedded, sniffed or cached.
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
    """Wraps the whole application, so that no response bypasses it.

    Args:
        app: the application.
        authorizer: admits or refuses requests.
        metrics: count the requests.
        log: the file of the access log; None for no log.
        max_body: the most bytes of a request's body.
        budgets: the tokens that keys have used; None if no route uses tokens.
    """

    def __init__(
        self,
        app: ASGIApp,
        authorizer: Authorizer,
        metrics: GatewayMetrics,
        log: Path | None,
        max_body: int = MIN_BODY_BYTES,
        budgets: TokenBudgets | None = None,
    ) -> None:
        self.app, self._authorizer, self._metrics, self._max_body = app, authorizer, metrics, max_body
        self._limits, self._budgets = KeyLimits(), budgets or TokenBudgets(None)
        self._log = access_log(log)
        self._name = uuid.uuid4().hex

    def key_use(self) -> KeyUse:
        """Returns the use of keys in this process, for the other gateways of the server."""
        return replace(self._limits.use(), gateway=self._name, budgets=self._budgets.totals())

    def merge_key_use(self, number: int, use: KeyUse | None) -> None:
        """Counts the use of keys in another gateway too; None if it does not answer."""
        self._limits.merge_peer(number, use)
        if use:
            self._budgets.merge_peer(number, use.budgets)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # The routes know GET alone. The server that sends the response leaves out the body.
        inner: Scope = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        context = RequestContext(_request_id(headers), scope["method"], scope["path"], time.monotonic())
        inner.setdefault("state", {})["context"] = context

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                _add_headers(message, context)
            elif context.method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            async with context.cleanup:
                await self._respond(context, headers, inner, receive, send_safely)
        finally:
            self._record(context)

    async def _respond(
        self, context: RequestContext, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            try:
                self._admit(context, headers)
            except UserError as error:
                logger.error("request %s was refused: %s", context.id, error)
                raise RequestError(503, "the keys of this server cannot be read; its log says why") from error
        except RequestError as error:
            body = in_format_of(context.path, error.status_code, error.body)
            await JSONResponse(body, error.status_code, error.headers)(scope, receive, send)
        else:
            await self.app(scope, bounded(receive, self._max_body), send)

    def _admit(self, context: RequestContext, headers: Mapping[str, str]) -> None:
        context.caller = self._authorizer.admit(context.path, token_of(headers), headers.get("host", ""))
        if key := context.caller.key:
            self._limits.start_request(key)
            context.cleanup.callback(self._limits.end_request, key)
            context.reserve = partial(self._reserve, context, key)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "send the request without Content-Encoding", "UnsupportedMediaTypeError")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            raise body_too_large(self._max_body)

    def _reserve(self, context: RequestContext, key: Key, tokens: int) -> None:
        self._budgets.reserve(key, tokens)
        try:
            self._limits.reserve_tokens(key, tokens)
        except RequestError:
            self._budgets.settle(key, tokens, 0)
            raise
        context.reserved += tokens

    def _record(self, context: RequestContext) -> None:
        if context.caller.key:
            used = context.prompt_tokens + context.completion_tokens
            self._limits.settle_tokens(context.caller.key, context.reserved, used)
            self._budgets.settle(context.caller.key, context.reserved, used)
        seconds = time.monotonic() - context.start
        self._metrics.count(context, path_pattern(context.path))
        # As JSON, which escapes line breaks: no path can add a line of its own.
        line = {
            "time": round(time.time(), 3),
            "request": context.id,
            "key": context.caller.name,
            "method": context.method,
            "path": context.path[:MAX_PATH],
            "status": context.status,
            "model": context.model,
            "weights": context.weights,
            "prompt_tokens": context.prompt_tokens,
            "completion_tokens": context.completion_tokens,
            "seconds": round(seconds, 4),
        }
        self._log.info(json.dumps(line))


def access_log(path: Path | None) -> logging.Logger:
    """Returns a logger that writes to a file, which is rotated when it is full."""
    # Constructed directly and not by `getLogger`: it belongs to one middleware, not to the process.
    logger = logging.Logger("access")
    if path is None:
        logger.addHandler(logging.NullHandler())
    else:
        logger.addHandler(_PrivateFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"))
    return logger


class _PrivateFileHandler(RotatingFileHandler):
    """Writes a log that only its owner can read, also after each rotation."""

    def _open(self) -> TextIOWrapper:
        make_private(Path(self.baseFilename))
        return super()._open()


def _request_id(headers: Mapping[str, str]) -> str:
    """Returns the id that the client sent, if it is harmless in a header and a log; else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _add_headers(message: Message, context: RequestContext) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in SAFE_HEADERS.items():
        headers.setdefault(name, value)
    headers.update(context.headers)
    headers["X-Request-Id"] = context.id
