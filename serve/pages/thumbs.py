"""What people think of an answer that the chat page gave them, into the run's feedback database."""

from collections.abc import Container
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from cluster.feedback import Feedback, Thumb
from serve.errors import RequestError

LONGEST = 100_000
MOST_MESSAGES = 200


class ThumbMessage(BaseModel):
    """One message of the conversation that was answered."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=LONGEST)


class Given(BaseModel):
    """A thumb up, down, or taken back (None). What was asked and answered is taken at the client's word: the server
    keeps no conversation."""

    model_config = ConfigDict(extra="forbid")
    request: str = Field(pattern=r"^[\w.-]{1,64}$", description="the X-Request-Id of the answer")
    model: str
    weights: str = Field("", pattern=r"^\w{0,64}$", description="its X-Triptych-Weights")
    messages: list[ThumbMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    answer: str = Field(max_length=LONGEST)
    good: bool | None


def thumbs_router(database: Feedback, models: Container[str]) -> APIRouter:
    """The path to which the chat page sends thumbs."""
    router = APIRouter()

    @router.post("/thumbs", name="thumbs")
    def thumb(request: Request, given: Given) -> Response:
        if given.model not in models:
            raise RequestError(404, f"there is no model {given.model[:80]!r} here", param="model")
        caller = request.state.visit.caller.name
        if given.good is None:
            database.remove_thumb(given.request, caller)
        else:
            database.save_thumb(Thumb(**given.model_dump(), caller=caller))
        return Response(status_code=204)

    return router
