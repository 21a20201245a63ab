"""What an answer is made of on its way from a model to the gateway."""

from dataclasses import dataclass
from typing import Any, Literal

Endpoint = Literal["chat/completions", "completions", "tokenize", "detokenize", "score"]


@dataclass(frozen=True)
class Opening:
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


Part = Opening | Reply | Usage | str


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
