"""The chat page, and the route by which it renders answers that are complete."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from serve.pages.markdown import parse_markdown
from serve.pages.render import page, routes_of
from serve.recording import Recording

MAX_TEXTS = 200
MAX_TEXT = 100_000


class Texts(BaseModel):
    """Texts in Markdown."""

    model_config = ConfigDict(extra="forbid")

    texts: Annotated[list[Annotated[str, Field(max_length=MAX_TEXT)]], Field(max_length=MAX_TEXTS)]


def chat_router(recording: Recording = Recording()) -> APIRouter:
    """Returns the page at / and its route /markdown.

    Args:
        recording: whose prompts are stored, of which the page tells, and asks where it has to.
    """
    router = APIRouter()

    @router.get("/")
    def chat_page(request: Request) -> HTMLResponse:
        return page("chat.html", routes_of(request.app), record=recording.mode, days=f"{recording.days:g}")

    # Not on the event loop: a long text takes a while.
    @router.post("/markdown")
    def markdown(body: Texts) -> dict[str, Any]:
        return {"parsed": [parse_markdown(text) for text in body.texts]}

    return router
