"""A learner and rewards in simulated time, which check what they are given."""

import json
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from actors.rollout.weights import Weights
from actors.types import Prompt, PromptTurn, Sample
from cluster.recipe.rlhf.section import Rlhf
from infra.bench.loops.simulation import World, weights_of

# How often the learner calls `meanwhile` in a step, by which the loop collects samples.
LOOKS = 20


class KilledError(Exception):
    """The driver or the learner was killed."""


@dataclass
class Learner:
    """Keeps the turns that its weights have learned from, as weights do, and loses what it did not save."""

    world: World
    settings: Rlhf
    seconds: float
    killed: Callable[[], bool] = lambda: False
    version: int = 0
    trained: list[PromptTurn] = field(default_factory=list)
    checkpoint: str | None = None

    def step(
        self,
        prompts: list[Prompt],
        groups: list[list[Sample]],
        rewards: list[list[float]],
        measured: Mapping[str, float],
        meanwhile: Callable[[], None],
    ) -> dict[str, float]:
        self._maybe_killed()
        for _ in range(LOOKS):
            self.world.timeline.run(self.seconds / LOOKS)
            meanwhile()
        assert len(prompts) == len(groups) == len(rewards) == self.settings.prompts_per_step
        for prompt, group, row in zip(prompts, groups, rewards, strict=True):
            turn = group[0].id.turn
            assert turn.prompt == prompt.id
            assert {sample.id.turn for sample in group} == {turn}
            # Samples whose reward failed are left out, and each other one has its own reward.
            assert row == [1.0 + sample.id.sample for sample in group]
            assert 2 <= len(group) <= self.settings.sampling.samples_per_prompt
            assert 0.0 not in row
            lags = [self.version - version for sample in group for version in sample.weight_versions]
            assert 0 <= min(lags) <= max(lags) <= self.settings.fleet.max_staleness
            self.trained.append(turn)
        self.version += 1
        self._maybe_killed()
        return {"tokens": float(sum(len(group) for group in groups)), **measured}

    def publish(self, version: int) -> Weights:
        assert version == self.version
        return weights_of(version)

    def save(self, extra: dict[str, Any]) -> None:
        self._maybe_killed()
        self.checkpoint = json.dumps([extra, self.version, [astuple(turn) for turn in self.trained]])
        self._maybe_killed()

    def restore(self) -> dict[str, Any] | None:
        if self.checkpoint is None:
            self.version, self.trained = 0, []
            return None
        state, self.version, trained = json.loads(self.checkpoint)
        self.trained = [PromptTurn(epoch, prompt) for epoch, prompt in trained]
        return state

    def _maybe_killed(self) -> None:
        if self.killed():
            raise KilledError


@dataclass
class Rewards:
    """Rewards that are ready at a given time."""

    world: World
    due: float
    score: Callable[[], list[list[float]]]

    def ready(self) -> bool:
        return self.world.timeline.now() >= self.due

    def wait(self) -> list[list[float]]:
        self.world.timeline.run(max(0.0, self.due - self.world.timeline.now()))
        return self.score()
