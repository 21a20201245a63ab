"""One step of RLHF: draw, reward, learn, reload; and how long each side waited for the other."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from actors.algorithms.registry import ALGORITHMS
from actors.orchestrator.accounting import Counters
from actors.orchestrator.ledger import Outcome
from actors.orchestrator.scheduler import RolloutScheduler, TrainBatch
from actors.orchestrator.work_queue import ActorState
from actors.rollout.weights import Weights
from actors.types import Prompt, Sample
from cluster.recipe.rlhf import Rlhf
from cluster.run.metrics import Stopwatch
from cluster.trace import ActorStatus, Span, StepTrace


class Policy(Protocol):
    """The learner, as the loop reaches it."""

    def step(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Sample]],
        rewards: Sequence[Sequence[float]],
        measured: Mapping[str, float],
        meanwhile: Callable[[], None],
    ) -> dict[str, float]:
        """Learns from samples, and calls `meanwhile` now and then; figures of the step, with those measured."""

    def publish(self, version: int) -> Weights:
        """The weights, in the object store."""

    def save(self, extra: dict[str, Any]) -> None:
        """Writes a checkpoint with `extra` in it."""


class Engines(Protocol):
    """The fleet, as the loop reaches it."""

    def states(self) -> list[ActorState]:
        """The states of the actors that are not dead."""

    def counters(self) -> Counters:
        """What has been done so far."""

    def present(self) -> list[ActorStatus]:
        """The actors that are not dead."""

    def spans(self) -> list[Span]:
        """What actors did since this was last asked."""

    def sync(self, weights: Weights, wait: bool) -> None:
        """As `Coordinator.sync`."""


@dataclass
class Loop:
    """What a step needs.

    Attributes:
        now: tells the time.
        last: what the last step learned from.
        trace: who was at what in the last step.
    """

    engines: Engines
    policy: Policy
    rollouts: RolloutScheduler
    settings: Rlhf
    now: Callable[[], float] = time.monotonic
    last: TrainBatch = field(default_factory=TrainBatch)
    trace: StepTrace = field(default_factory=lambda: StepTrace(0, 0.0))

    def step(self, number: int, measured: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
        """Makes version `number + 1` of the weights and brings it to the engines; figures of the step.

        `measured` is what is known of the policy besides, and goes to the learner.
        `learner_idle` and `rollout_idle` are the shares of the step's time in which the learner learned nothing and
        rollout actors drew nothing; `rollout_tokens_per_second` is what all of them draw while they do.
        """
        clock, before, begin = Stopwatch(self.now), self.engines.counters(), self.now()
        dynamic = ALGORITHMS[self.settings.algorithm].dynamic_sampling
        batch = self.rollouts.scored_batch(number, dynamic)
        self.last, waited = batch, clock.lap()
        figures = self.policy.step(batch.prompts, batch.groups, batch.rewards, measured, self.rollouts.take_in)
        self.rollouts.ledger.commit(batch.tickets, Outcome.TRAINED)
        learned = clock.lap()
        # Asynchronous: samples by older weights are allowed, so that nobody waits for the slowest engine to reload.
        self.engines.sync(self.policy.publish(number + 1), wait=self.settings.fleet.max_staleness == 0)
        synced = clock.lap()
        seconds, actors = waited + learned + synced, len(self.engines.states())
        after = self.engines.counters()
        busy = after.busy_seconds - before.busy_seconds
        drawn, learnt = begin + waited, begin + waited + learned
        ids = [handed.id for handed in batch.handed]
        self.trace = StepTrace(
            number,
            begin,
            end=begin + seconds,
            waiting=len(self.rollouts.in_work),
            spans=[
                *self.engines.spans(),
                *batch.spans,
                Span("learner", "learn", drawn, learnt, ids),
                Span("learner", "publish", learnt, begin + seconds),
            ],
            prompts=batch.handed,
            actors=self.engines.present(),
        )
        return {
            **figures,
            "step_seconds": seconds,
            "rollout_seconds": batch.rollout_seconds,
            "reward_seconds": batch.reward_seconds,
            "sync_seconds": synced,
            "rollout_tokens_per_second": actors * (after.tokens - before.tokens) / max(busy, 1e-9),
            "filtered": batch.filtered,
            "rollout_actors": actors,
            "prompts_waiting": len(self.rollouts.in_work),
            "learner_idle": 1 - learned / seconds,
            "rollout_idle": min(1.0, max(0.0, 1 - busy / (seconds * max(1, actors)))),
        }

    def save(self, steps: int) -> None:
        """Writes a checkpoint from which a run goes on with step `steps`."""
        self.policy.save({"step": steps, "ledger": self.rollouts.ledger.state_dict()})
