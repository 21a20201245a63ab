"""The coordinator and the loop over it, on actors that exist only in time."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.coordinator import Coordinator
from actors.ledger import Ledger, Ticket
from actors.reinforce import Loop, advice
from actors.rollouts import Rollouts
from actors.roster import ActorState
from actors.sample import Prompt, Sample, Sampling
from actors.simulation import Call, Fate, Latency, World, weights_of
from actors.weights import Weights
from cluster.failures import DeadlineError, EngineError, StageError
from cluster.recipe import Rlhf

DEADLINE = 20.0
STEPS = 12
PROMPTS = [f"p{i}" for i in range(40)]
SAMPLING = Sampling(2, 1.0, 8)
# How often an actor dies or hangs in a call of each kind.
DEATHS: dict[Call, float] = {"start": 0.08, "pull": 0.03, "generate": 0.03}
HANGS: dict[Call, float] = {"start": 0.03, "pull": 0.01, "generate": 0.02}


def listed(count: int) -> list[Prompt]:
    return [Prompt(f"q{i}", [1]) for i in range(count)]


class Engines:
    """A fleet of simulated actors."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.states, self.counters = coordinator.states, coordinator.counters

    def sync(self, version: int, state: Weights, wait: bool) -> None:
        assert state.version == version
        self.coordinator.sync(state, wait)


class KilledError(Exception):
    """The driver, or the learner, is no more."""


@dataclass
class Learner:
    """Keeps the turns that its weights have learned from, as weights do, and loses what it did not save."""

    world: World
    settings: Rlhf
    seconds: float
    killed: Callable[[], bool] = lambda: False
    version: int = 0
    trained: list[Ticket] = field(default_factory=list)
    checkpoint: str | None = None

    def step(self, prompts: list[Prompt], groups: list[list[Sample]], rewards: list[list[float]]) -> dict[str, float]:
        self._maybe_killed()
        self.world.timeline.run(self.seconds)
        assert len(prompts) == len(groups) == len(rewards) == self.settings.prompts_per_step
        for prompt, group, row in zip(prompts, groups, rewards, strict=True):
            epoch, _, name = group[0].prompt_id.partition(":")
            assert name == prompt.id
            assert {sample.prompt_id for sample in group} == {group[0].prompt_id}
            assert [sample.index for sample in group] == list(range(self.settings.samples_per_prompt))
            assert 0.0 not in row
            lags = [self.version - version for sample in group for version in sample.weight_versions]
            assert 0 <= min(lags) <= max(lags) <= self.settings.max_staleness
            self.trained.append(Ticket(int(epoch), name))
        self.version += 1
        self._maybe_killed()
        return {"tokens": float(sum(len(group) for group in groups))}

    def weights(self) -> Weights:
        return weights_of(self.version)

    def save(self, extra: dict[str, Any]) -> None:
        self._maybe_killed()
        self.checkpoint = json.dumps([extra, self.version, self.trained])
        self._maybe_killed()

    def restore(self) -> dict[str, Any] | None:
        if self.checkpoint is None:
            self.version, self.trained = 0, []
            return None
        state, self.version, trained = json.loads(self.checkpoint)
        self.trained = [Ticket(epoch, prompt) for epoch, prompt in trained]
        return state

    def _maybe_killed(self) -> None:
        if self.killed():
            raise KilledError


def loop_of(world: World, coordinator: Coordinator, learner: Learner, score: Callable[..., Any]) -> Loop:
    prompts = {name: Prompt(name, [1]) for name in PROMPTS}
    ledger = Ledger(PROMPTS, seed=1)
    rollouts = Rollouts(coordinator, ledger, prompts, learner.settings, 1, world.timeline.now)
    return Loop(Engines(coordinator), learner, rollouts, learner.settings, score, world.timeline.now)


def rewarded(prompts: list[Prompt], groups: list[list[Sample]]) -> list[list[float]]:
    return [[1.0 + sample.index for sample in group] for group in groups]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_fails_every_prompt_is_trained_once_and_every_batch_is_whole(seed: int):
    """One random schedule of faults: actors that die or hang in any call, that join and leave, rewards that fail, and
    a driver or learner that is killed anywhere and goes on from its checkpoint."""
    choose = random.Random(seed)
    settings = Rlhf(
        prompts_per_step=choose.randint(1, 8), samples_per_prompt=2, max_staleness=choose.choice([0, 0, 1, 2])
    )
    seen: Counter[str] = Counter()

    def fate(call: Call) -> Fate:
        drawn = choose.random()
        found: Fate = "die" if drawn < DEATHS[call] else "hang" if drawn < DEATHS[call] + HANGS[call] else "well"
        seen[f"{found} in {call}"] += 1
        return found

    def score(prompts: list[Prompt], groups: list[list[Sample]]) -> list[list[float]]:
        if choose.random() < 0.02:
            raise StageError("a reward failed")
        return rewarded(prompts, groups)

    world = World(Latency(spread=0.5), choose, fate)
    learner = Learner(world, settings, choose.uniform(0.1, 2.0), killed=lambda: choose.random() < 0.02)
    step, lives = 0, 0
    while step < STEPS:
        lives += 1
        assert lives < 200
        target = choose.randint(1, 5)
        coordinator = world.coordinator(target, DEADLINE)

        def anything(coordinator: Coordinator = coordinator) -> None:
            if choose.random() < 0.2:
                coordinator.resize(choose.randint(1, 5))
            if choose.random() < 0.01:
                raise KilledError
            world.timeline.after(choose.expovariate(0.5), anything)

        world.timeline.after(choose.expovariate(0.5), anything)
        state = learner.restore()
        begun = world.timeline.now()
        try:
            coordinator.start()
            loop = loop_of(world, coordinator, learner, score)
            if state:
                loop.rollouts.ledger.load_state_dict(state["ledger"])
                coordinator.sync(weights_of(state["step"]), wait=True)
            for step in range(state["step"] if state else 0, STEPS):
                begun = world.timeline.now()
                loop.step(step)
                if (step + 1) % 3 == 0 or step + 1 == STEPS:
                    loop.save(step + 1)
            step = STEPS
        except (KilledError, EngineError, StageError):
            step = 0
        # A step waits for samples, the learner and a sync; each sample may be drawn again once for a dead actor.
        assert world.timeline.now() - begun <= 3 * 2 * DEADLINE + learner.seconds + 1
        world.timeline.clear()
        coordinator.close()
        world.hung.clear()
    ledger = loop.rollouts.ledger
    booked = Counter(learner.trained)
    assert len(learner.trained) == STEPS * settings.prompts_per_step == ledger.outcomes["trained"]
    assert set(booked.values()) == {1}
    state = ledger.state_dict()
    unsettled = [Ticket(*ticket) for ticket in state["unsettled"]]
    assert not booked.keys() & set(unsettled)
    handed_out = {Ticket(epoch, prompt) for epoch in range(state["epoch"]) for prompt in PROMPTS}
    handed_out |= {Ticket(state["epoch"], prompt) for prompt in ledger._order[: state["position"]]}
    assert booked.keys() | set(unsettled) == handed_out
    assert all(seconds <= DEADLINE + 1 for seconds in world.released)
