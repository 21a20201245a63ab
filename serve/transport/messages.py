"""What an answer is made of on its way from a model to the gateway."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Endpoint = Literal["chat/completions", "completions", "tokenize", "detokenize", "score"]


@dataclass(frozen=True)
class ResponseStart:
    """Comes before an answer: the version of the weights that begins it."""

    weights: str


@dataclass(frozen=True)
class Reply:
    """A whole answer, as opposed to a stream of server-sent events.

    Attributes:
        status: the HTTP status.
        body: what is sent, as JSON.
        weights: the versions of the weights that wrote it, where they changed meanwhile.
    """

    status: int
    body: dict[str, Any]
    weights: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a stream, after its last event, and as in `Reply` the versions of the weights."""

    prompt_tokens: int
    completion_tokens: int
    weights: str | None = None


Part = ResponseStart | Reply | Usage | str


@dataclass(frozen=True)
class Promoted:
    """What came of a change of weights.

    Attributes:
        seconds: for how long no answer was begun or went on.
        mixed: answers that were being written then, by both versions.
        error: why the old weights are still there, or None.
    """

    seconds: float
    mixed: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Presence:
    """What a replica says of itself.

    Attributes:
        weights: the version of every model's weights.
        requests: how many of each model wait or run.
    """

    weights: dict[str, str]
    requests: dict[str, int]


class Served(Protocol):
    """A model in a replica."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Answers one request: an `Opening`, then a single `Reply`, or server-sent events as text and their `Usage`.

        Closing the iterator ends the work on it.
        """

    async def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`."""

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """The JSON schema of the requests to every endpoint that it has."""

    async def promote(self, folder: Path, weights: str) -> Promoted:
        """Takes over another version of the weights while it serves."""

    def live(self) -> str:
        """The version of its weights."""

    def requests(self) -> int:
        """How many requests wait or run."""

    async def check_health(self) -> None:
        """Raises when it cannot answer any more."""

    def close(self) -> None:
        """Ends what goes on for it outside of this process."""
