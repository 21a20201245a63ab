"""Runs one step of RLHF: sample, reward, learn, reload; and measures how long each side waited for the other."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from actors.orchestrator.coordination.coordinator import Coordinator
from actors.orchestrator.coordination.protocols import LearnerProtocol
from actors.orchestrator.ledger import Outcome
from actors.orchestrator.scheduler import RolloutScheduler, TrainBatch
from cluster.recipe.rlhf.section import Rlhf
from cluster.run.metrics import Stopwatch
from cluster.trace import Span, StepTrace


@dataclass
class RlhfLoop:
    """The loop of RLHF.

    Attributes:
        now: tells the time.
        last_batch: the batch of the last step.
        trace: the work of every actor in the last step.
    """

    fleet: Coordinator
    learner: LearnerProtocol
    scheduler: RolloutScheduler
    settings: Rlhf
    now: Callable[[], float] = time.monotonic
    last_batch: TrainBatch = field(default_factory=TrainBatch)
    trace: StepTrace = field(default_factory=lambda: StepTrace(0, 0.0))

    def step(self, number: int, measured: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
        """Makes version `number + 1` of the weights and sends it to the rollout actors.

        Args:
            measured: further metrics of the policy, for the learner's limits.

        Returns:
            The step's metrics. `learner_idle` and `rollout_idle` are the shares of its time in which the learner did
            not learn and the average rollout actor did not draw; `rollout_tokens_per_second` is the rate of all rollout
            actors while they draw.
        """
        clock, before, begin = Stopwatch(self.now), self.fleet.counters(), self.now()
        batch = self.scheduler.scored_batch(number, self.settings.resolved.dynamic_sampling)
        self.last_batch, waited = batch, clock.lap()
        metrics = self.learner.step(batch.prompts, batch.groups, batch.rewards, measured, self.scheduler.collect)
        self.scheduler.ledger.commit(batch.turns, Outcome.TRAINED)
        learned = clock.lap()
        # Asynchronous: samples by older weights are allowed, so that the loop need not wait for the slowest engine.
        self.fleet.sync(self.learner.publish(number + 1), wait=self.settings.fleet.max_staleness == 0)
        synced = clock.lap()
        seconds, actors = waited + learned + synced, len(self.fleet.states())
        after = self.fleet.counters()
        busy = after.busy_seconds - before.busy_seconds
        self.trace = self._trace(number, batch, begin, begin + waited, begin + waited + learned, begin + seconds)
        return {
            **metrics,
            "step_seconds": seconds,
            "rollout_seconds": batch.rollout_seconds,
            "reward_seconds": batch.reward_seconds,
            "sync_seconds": synced,
            "rollout_tokens_per_second": actors * (after.tokens - before.tokens) / max(busy, 1e-9),
            "filtered": batch.filtered,
            "surplus": batch.surplus,
            "failed_verdicts": batch.failed_verdicts,
            "redrawn": batch.redrawn,
            "failed_prompts": batch.failed,
            "rollout_actors": actors,
            "prompts_waiting": len(self.scheduler.inflight),
            "learner_idle": 1 - learned / seconds,
            "rollout_idle": min(1.0, max(0.0, 1 - busy / (seconds * max(1, actors)))),
        }

    def save(self, steps: int, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Writes a checkpoint from which a run resumes with step `steps`; `more` is JSON to store in it."""
        self.learner.save({"step": steps, "ledger": self.scheduler.ledger.state_dict(), **more})

    def _trace(
        self, number: int, batch: TrainBatch, begin: float, scored: float, learned: float, end: float
    ) -> StepTrace:
        return StepTrace(
            number,
            begin,
            end=end,
            waiting=len(self.scheduler.inflight),
            spans=[
                *self.fleet.take_spans(),
                *batch.spans,
                Span("learner", "learn", scored, learned, [trace.id for trace in batch.traces]),
                Span("learner", "publish", learned, end),
            ],
            prompts=batch.traces,
            actors=self.fleet.statuses(),
        )
