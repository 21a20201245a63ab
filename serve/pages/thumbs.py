"""The route for thumbs: a person's opinion of an answer on the chat page, stored in the feedback database.

Personal data in the conversation is replaced before, as it is in the prompts of live traffic.
"""

from collections.abc import Container
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from cluster.feedback import Feedback, Thumb
from cluster.feedback.live import KINDS
from cluster.personal_data import replace_in_all
from serve.errors import RequestError

MAX_TEXT = 100_000
MAX_MESSAGES = 200


class ThumbMessage(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT)


class ThumbRequest(BaseModel):
    """A thumb up, down, or taken back (None). The client sends the conversation and the answer along: the server keeps
    no conversation to compare them with."""

    model_config = ConfigDict(extra="forbid")
    request: str = Field(pattern=r"^[\w.-]{1,64}$", description="the X-Request-Id of the answer")
    model: str
    weights: str = Field("", pattern=r"^\w{0,64}$", description="its X-Triptych-Weights")
    messages: list[ThumbMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    answer: str = Field(max_length=MAX_TEXT)
    good: bool | None


def thumbs_router(database: Feedback, models: Container[str]) -> APIRouter:
    """Returns the route to which the chat page sends thumbs.

    Args:
        database: where thumbs are stored.
        models: the names of the served models.
    """
    router = APIRouter()

    @router.post("/thumbs", name="thumbs")
    def thumb(request: Request, body: ThumbRequest) -> Response:
        if body.model not in models:
            raise RequestError(404, f"there is no model {body.model[:80]!r} here", param="model")
        caller = request.state.context.caller.name
        if body.good is None:
            database.remove_thumb(body.request, caller)
        else:
            given = body.model_dump()
            texts = [*(message["content"] for message in given["messages"]), given["answer"]]
            # A value that the answer repeats has the placeholder that it has in the question.
            (*contents, answer), _ = replace_in_all(texts, KINDS)
            messages = [{**message, "content": text} for message, text in zip(given["messages"], contents, strict=True)]
            database.save_thumb(Thumb(**{**given, "messages": messages, "answer": answer}, caller=caller))
        return Response(status_code=204)

    return router
