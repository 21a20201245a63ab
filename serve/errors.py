"""Errors in the format of OpenAI's API, which is also vLLM's, and in that of Anthropic's."""

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException


def error_body(status: int, message: str, kind: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Returns the JSON body of an error.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do.
        kind: OpenAI's `type`; by default the name of the status.
        param: the field of the request that is wrong.
    """
    kind = kind or HTTPStatus(status).phrase.title().replace(" ", "") + "Error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


# Anthropic's names of errors. Other statuses are an api_error from 500 on, and an invalid_request_error below.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
ANTHROPIC_PATH = "/v1/messages"


def in_format_of(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the body of an error as the clients of a path read it.

    Args:
        path: the path of the request.
        status: the HTTP status.
        body: the result of `error_body`.
    """
    if path != ANTHROPIC_PATH and not path.startswith(f"{ANTHROPIC_PATH}/"):
        return body
    kind = ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


class RequestError(HTTPException):
    """An error with which the gateway itself answers a request.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do.
        kind: OpenAI's `type`; by default the name of the status.
        param: the field of the request that is wrong.
        retry_after: the seconds after which the request may be repeated, for the header `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message, {"Retry-After": str(retry_after)} if retry_after is not None else None)
        self.body = error_body(status, message, kind, param)
