"""One request on its way through the server."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from serve.http.auth import EVERYONE, Caller


@dataclass
class RequestContext:
    """One request as it is answered; the gateway fills in what the door cannot know.

    Attributes:
        id: its number.
        headers: more headers for the answer.
        held: what is given back when the request has ended, however it ended.
    """

    id: str
    method: str
    path: str
    start: float
    caller: Caller = EVERYONE
    model: str = ""
    weights: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
