"""Errors as OpenAI's clients read them; the same shape that vLLM answers with."""

from http import HTTPStatus
from typing import Any

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
