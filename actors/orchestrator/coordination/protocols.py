"""Declares the interfaces that the orchestrator uses: rollout actors, a clock, a learner and rewards.

Each has a real implementation and one that exists only in simulated time (`infra.bench.loops.simulation` and the
tests).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from actors.orchestrator.coordination.work_queue import GenerateRequest
from actors.rollout.weights import Weights
from actors.types import Prompt, Sample, Verdict

# Is called once: with the result of a call, or with None and the error that it failed with.
Callback = Callable[[Any, BaseException | None], None]
# Is called with the samples of prompts that have been finished since the last call, each with the prompt's place in the
# request; with none as a sign of progress.
Report = Callable[[Sequence[tuple[int, list[Sample]]]], None]


class Worker(Protocol):
    """One rollout actor.

    Every method returns at once and answers later through its callback. A `ValueError` says that the request is wrong
    and the actor is well. An actor answers several requests at once, and pulls weights in the midst of them.
    """

    def start(self, callback: Callback) -> None:
        """Answers with None once the engine has started."""

    def pull(self, weights: Weights, callback: Callback) -> None:
        """Answers with the digests of the weights that the engine then computes with."""

    def generate(self, request: GenerateRequest, report: Report, callback: Callback) -> None:
        """Reports the samples of each prompt as soon as they are finished, and progress every second or so; answers
        with None after the last."""

    def kill(self) -> None:
        """Ends the actor, whatever it is doing."""


class Clock(Protocol):
    """Tells the time, and waits."""

    def now(self) -> float:
        """Returns the seconds since an arbitrary moment."""

    def sleep(self, seconds: float) -> None:
        """Returns after that time, or sooner when an actor has answered."""


class RewardFuture(Protocol):
    """Rewards that have been requested."""

    def ready(self) -> bool:
        """Returns whether `wait` would return at once."""

    def wait(self) -> list[list[Verdict]]:
        """Waits, and returns the verdicts on each prompt's samples."""


class LearnerProtocol(Protocol):
    """The policy in training; `actors.learner.remote` has the real one."""

    def step(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Sample]],
        rewards: Sequence[Sequence[float]],
        measured: Mapping[str, float],
        meanwhile: Callable[[], None],
    ) -> dict[str, float]:
        """Updates the policy, calling `meanwhile` now and then; returns the step's metrics with those `measured`."""

    def publish(self, version: int) -> Weights:
        """Puts the policy's weights into the object store as that version."""

    def save(self, extra: dict[str, Any]) -> None:
        """Writes a checkpoint with `extra` in it."""

    def weights(self) -> dict[str, Tensor]:
        """Returns the policy's weights by their Hugging Face names."""

    def logprobs(self, sequences: list[list[int]], starts: list[int], temperature: float) -> list[list[float]]:
        """Returns the log-probabilities of the tokens of each sequence from its start on."""
