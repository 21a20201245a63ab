"""Errors in the format of OpenAI's API, which is also vLLM's."""

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
