"""The parts of a model's response on its way to the gateway, and the protocol of the models that produce them."""

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Endpoint = Literal[
    "chat/completions",
    "completions",
    "responses",
    "messages",
    "messages/count_tokens",
    "tokenize",
    "detokenize",
    "tokenizer_info",
    "score",
]


@dataclass(frozen=True)
class ResponseStart:
    """The first part of a response.

    Attributes:
        weights: the version of the weights that starts to generate it.
        ignored: fields of the request that the model does not know.
        note: what the client should know of the model, such as that it cannot chat; ASCII.
    """

    weights: str
    ignored: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class CompleteResponse:
    """A complete response, as opposed to a stream of server-sent events.

    Attributes:
        status: the HTTP status.
        body: the JSON body.
        weights: the versions of the weights that generated it, if they changed meanwhile.
    """

    status: int
    body: dict[str, Any]
    weights: str | None = None


@dataclass(frozen=True)
class Usage:
    """The token counts of a stream, after its last event; `weights` is the same as in `CompleteResponse`."""

    prompt_tokens: int
    completion_tokens: int
    weights: str | None = None


Part = ResponseStart | CompleteResponse | Usage | str


@dataclass
class Tally:
    """The tokens that a model has computed for a request so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


# The tally of the request that a replica's task works on: a context variable, since vLLM's serving classes, which call
# the engine, would not pass it on.
TALLY: ContextVar[Tally] = ContextVar("TALLY")


@dataclass(frozen=True)
class PromotionResult:
    """The outcome of a change of weights.

    Attributes:
        seconds: how long generation was paused.
        mixed: responses in progress at that moment, which both versions generated.
        error: why the old weights are still served, or None.
    """

    seconds: float
    mixed: int = 0
    error: str | None = None


@dataclass
class EngineState:
    """The state of a model's engine.

    Attributes:
        running: requests whose tokens it computes; each of a request's `n` answers counts.
        waiting: requests in its queue.
        kv_cache_usage: the share of the KV cache that is in use.
        preemptions: how often it gave up a request's cache for others, to compute it again.
        prefix_tokens: tokens of prompts that it looked up in the prefix cache.
        prefix_hits: those of them that it found there.
    """

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    preemptions: int = 0
    prefix_tokens: int = 0
    prefix_hits: int = 0


@dataclass(frozen=True)
class ReplicaStatus:
    """The state of one replica.

    Attributes:
        weights: the version of every model's weights.
        requests: how many requests of each model wait or run.
        engines: the state of each model's engine, for models that have one of their own.
    """

    weights: dict[str, str]
    requests: dict[str, int]
    engines: dict[str, EngineState] = field(default_factory=dict)


class ServedModel(Protocol):
    """A model in a replica."""

    def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Answers one request: a `ResponseStart`, then one `CompleteResponse`, or server-sent events as text and then
        their `Usage`.

        Closing the iterator aborts the request.
        """

    async def card(self) -> dict[str, Any]:
        """Returns the model's entry in `/v1/models`."""

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """Returns the JSON schema of the requests to each endpoint that the model supports."""

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        """Loads another version of the weights while it serves."""

    def weights_version(self) -> str:
        """Returns the version of the weights that are served."""

    def requests(self) -> int:
        """Returns how many requests wait or run."""

    def engine_state(self) -> EngineState | None:
        """Returns the state of its engine; None if it has none of its own."""

    async def check_health(self) -> None:
        """Raises an exception if the model cannot answer any more."""

    def close(self) -> None:
        """Releases resources outside of this process."""
