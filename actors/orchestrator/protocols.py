"""What the coordinator needs of the world: rollout actors that it can call, and a clock."""

from collections.abc import Callable
from typing import Any, Protocol

from actors.orchestrator.work_queue import GenerateRequest
from actors.rollout.weights import Weights

# Called once with what a call gave, or with None and why it failed.
Answer = Callable[[Any, BaseException | None], None]


class Worker(Protocol):
    """A rollout actor as the coordinator reaches it.

    Every method returns at once, and `answer` follows; an error that is a `ValueError` says that the request is wrong
    and the actor well. Several chunks may be drawn at once, and weights pulled in the midst of it.
    """

    def start(self, answer: Answer) -> None:
        """Answers with None once the engine is up."""

    def pull(self, weights: Weights, answer: Answer) -> None:
        """Answers with the digests of the weights that the engine then computes with."""

    def generate(self, chunk: GenerateRequest, answer: Answer) -> None:
        """Answers with the samples of each prompt."""

    def kill(self) -> None:
        """Ends the actor, whatever it is at."""


class Clock(Protocol):
    """The time, and waiting for it to pass."""

    def now(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float) -> None:
        """Returns after so many seconds, or sooner when an actor has answered."""
