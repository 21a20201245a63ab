"""One step of RLHF: draw, reward, learn, reload; and how long each side waited for the other."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.coordinator import Counters
from actors.ledger import Outcome
from actors.model.objectives.algorithms import ALGORITHMS
from actors.rollouts import Rollouts
from actors.roster import ActorState
from actors.sample import Prompt, Sample
from cluster.metrics import Stopwatch
from cluster.recipe import Rlhf

# A learner that waits less than this is busy: what is left is the time of the weights on their way.
WAITING_SHARE = 0.1


class Policy(Protocol):
    """The learner, as the loop reaches it."""

    def step(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]], rewards: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        """Learns from samples; figures of the step."""

    def weights(self) -> Any:
        """What the fleet's `sync` takes."""

    def save(self, extra: dict[str, Any]) -> None:
        """Writes a checkpoint with `extra` in it."""


class Engines(Protocol):
    """The fleet, as the loop reaches it."""

    def states(self) -> list[ActorState]:
        """The states of the actors that are not dead."""

    def counters(self) -> Counters:
        """What has been done so far."""

    def sync(self, version: int, state: Any, wait: bool) -> None:
        """As `Fleet.sync`."""


@dataclass
class Loop:
    """What a step needs.

    Attributes:
        score: rewards of the samples of each prompt.
        now: tells the time.
    """

    engines: Engines
    policy: Policy
    rollouts: Rollouts
    settings: Rlhf
    score: Callable[[list[Prompt], list[list[Sample]]], list[list[float]]]
    now: Callable[[], float] = time.monotonic

    def step(self, number: int) -> dict[str, Any]:
        """Makes version `number + 1` of the weights and brings it to the engines; figures of the step.

        `learner_idle` and `rollout_idle` are the shares of the step's time in which the learner learned nothing and
        rollout actors drew nothing.
        """
        clock, before = Stopwatch(self.now), self.engines.counters()
        dynamic = ALGORITHMS[self.settings.algorithm].dynamic_sampling
        batch = self.rollouts.scored_batch(number, self.score, dynamic)
        waited = clock.lap()
        figures = self.policy.step(batch.prompts, batch.groups, batch.rewards)
        self.rollouts.ledger.settle(batch.tickets, Outcome.TRAINED)
        learned = clock.lap()
        # Asynchronous: samples by older weights are allowed, so that nobody waits for the slowest engine to reload.
        self.engines.sync(number + 1, self.policy.weights(), wait=self.settings.max_staleness == 0)
        synced = clock.lap()
        seconds, actors = waited + learned + synced, len(self.engines.states())
        busy = self.engines.counters().busy_seconds - before.busy_seconds
        return {
            **figures,
            "rollout_seconds": batch.rollout_seconds,
            "reward_seconds": batch.reward_seconds,
            "sync_seconds": synced,
            "rollout_tokens_per_second": figures["tokens"] / max(batch.rollout_seconds, 1e-9),
            "filtered": batch.filtered,
            "rollout_actors": actors,
            "learner_idle": 1 - learned / seconds,
            "rollout_idle": min(1.0, max(0.0, 1 - busy / (seconds * max(1, actors)))),
        }

    def save(self, steps: int) -> None:
        """Writes a checkpoint from which a run goes on with step `steps`."""
        self.policy.save({"step": steps, "ledger": self.rollouts.ledger.state_dict()})


def advice(learner_idle: float, rollout_idle: float, actors: int, max_staleness: int) -> str | None:
    """What would make the run faster, in one line, or None if the learner hardly waits.

    The number of actors is the one whose work on a batch takes as long as the learner's, if each new actor has cores of
    its own.

    Args:
        learner_idle: share of the time in which the learner waited.
        rollout_idle: share of the time in which the average rollout actor did.
        actors: how many there were.
        max_staleness: the recipe's.
    """
    if learner_idle < WAITING_SHARE:
        needed = max(1, math.ceil(actors * (1 - rollout_idle)))
        if needed == actors:
            return None
        return f"the rollout actors waited {rollout_idle:.0%} of the time: {needed} of {actors} would do"
    waited = f"the learner waited {learner_idle:.0%} of the time"
    if max_staleness == 0 and rollout_idle > WAITING_SHARE:
        return f"{waited} and the rollout actors {rollout_idle:.0%}: rlhf.max_staleness=1 has both work at once"
    needed = math.ceil(actors * (1 - rollout_idle) / max(1 - learner_idle, 0.01))
    return f"{waited}: add {needed - actors} rollout actors" if needed > actors else None
