"""How many prompts dynamic sampling draws at once, and which of them a step takes."""

import json
import random
from collections import Counter

import pytest

from actors.orchestrator.ledger import Ledger, Outcome
from actors.orchestrator.oversampling import MOST, PRIOR, WINDOW, Oversampling
from actors.orchestrator.scheduler import RolloutScheduler
from actors.types import Prompt, PromptTurn, Sample
from infra.bench.loops.simulation import Latency, World, weights_of
from tests.helpers import rlhf

STEPS, SIZE, SHARE = 24, 8, 0.3
PROMPTS = {f"p{i}": Prompt(f"p{i}", [1]) for i in range(200)}


class Rewards:
    """Three of ten prompts get different rewards, by a chance of the turn and the version of the weights."""

    def __init__(self, _: list[Prompt], groups: list[list[Sample]]) -> None:
        self.rewards = [[0.0, float(self.differ(group[0]))] for group in groups]

    @staticmethod
    def differ(sample: Sample) -> bool:
        return random.Random(f"{sample.id.turn}:{sample.weight_versions[0]}").random() < SHARE

    def ready(self) -> bool:
        return True

    def wait(self) -> list[list[float]]:
        return self.rewards


def trained(
    actors: int, chance: int, killed: frozenset[int] = frozenset()
) -> tuple[list[list[PromptTurn]], Counter[str]]:
    """Returns the turns of each step's batch, and sums over the steps; a killed run goes on from the step before."""
    settings = rlhf(prompts_per_step=SIZE, samples_per_prompt=2, steps=STEPS)
    saved, steps, sums, step = Ledger(PROMPTS.values(), 1).state_dict(), [], Counter[str](), 0
    while step < STEPS:
        world = World(Latency(spread=1.0), random.Random(chance + step))
        coordinator = world.coordinator(actors, 600.0)
        coordinator.start()
        ledger = Ledger(PROMPTS.values(), 1)
        ledger.load_state_dict(json.loads(json.dumps(saved)))
        scheduler = RolloutScheduler(coordinator, ledger, PROMPTS, settings, 1, Rewards, world.timeline.now)
        if step:
            coordinator.sync(weights_of(step))
        while step < STEPS:
            begun = world.timeline.now()
            batch = scheduler.scored_batch(step, dynamic=True)
            if step in killed:
                killed -= {step}
                break
            assert all(len(set(rewards)) == 2 for rewards in batch.rewards)
            steps.append(batch.turns)
            ledger.commit(batch.turns, Outcome.TRAINED)
            sums += Counter(surplus=batch.surplus, milliseconds=round(1000 * batch.rollout_seconds))
            assert batch.rollout_seconds <= world.timeline.now() - begun
            saved, step = ledger.state_dict(), step + 1
            coordinator.sync(weights_of(step))
    return steps, sums + Counter(ledger.outcomes)


def test_batches_do_not_depend_on_actors_their_speed_or_a_kill():
    expected, sums = trained(1, chance=0)
    assert {len(turns) for turns in expected} == {SIZE}
    assert trained(4, chance=7)[0] == expected
    assert trained(3, chance=8, killed=frozenset({3, 4, 17}))[0] == expected
    # Each that ended was drawn for, and each that is trained on held something to learn.
    assert sums["trained"] == STEPS * SIZE
    assert sums["trained"] / (sums["trained"] + sums["filtered"]) == pytest.approx(SHARE, abs=0.05)
    assert 0 < sums["surplus"] < 0.5 * sums["trained"]


def test_a_step_takes_far_less_time_than_by_drawing_in_turn(monkeypatch: pytest.MonkeyPatch):
    _, at_once = trained(2, chance=0)
    monkeypatch.setattr("actors.orchestrator.oversampling.MOST", 1)
    _, in_turn = trained(2, chance=0)
    assert at_once["milliseconds"] < 0.7 * in_turn["milliseconds"]


def test_oversampling_gives_about_as_many_useful_groups_as_a_step_needs():
    own = Oversampling()
    assert own.prompts(8) == 8
    for index in range(WINDOW):
        own.add(learnable=index % 4 == 0)
    assert own.prompts(30) == pytest.approx(4 * 30, abs=8)
    for _ in range(WINDOW):
        own.add(learnable=False)
    assert own.share == PRIOR / (WINDOW + PRIOR)
    assert own.prompts(8) == MOST * 8
    other = Oversampling()
    other.load_state_dict(own.state_dict())
    assert (other.share, other.prompts(3)) == (own.share, own.prompts(3))
