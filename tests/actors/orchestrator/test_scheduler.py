"""The scheduler of rollouts: prompts without a difference or a verdict are drawn again, replaced, or end the run."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from actors.orchestrator.ledger import MAX_DRAWS, Ledger, Outcome
from actors.orchestrator.scheduler import RolloutScheduler
from actors.types import Failure, Prompt, PromptTurn, RolloutId, Sample, Sampling, Verdict
from cluster.errors import StageError
from tests.helpers import rlhf


@dataclass
class InstantFleet:
    """Answers every prompt at once, as the fleet would: two samples, tagged with the ledger's turn."""

    count: int = 2
    waiting: list[Prompt] = field(default_factory=list)
    seeds: dict[PromptTurn, list[int | None]] = field(default_factory=dict)

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        assert sampling.count == self.count
        self.waiting += prompts
        for prompt in prompts:
            self.seeds.setdefault(prompt.turn, []).append(sampling.seed)

    def begun(self) -> dict[int, int]:
        return {}

    def collect_all(self, at_least: int) -> list[list[Sample]]:
        assert len(self.waiting) >= at_least
        done, self.waiting = self.waiting, []
        return [
            [Sample(RolloutId(prompt.epoch, prompt.id, i), [5], [0.0], [0], "stop", "") for i in range(self.count)]
            for prompt in done
        ]


@dataclass
class Given:
    """Rewards that are ready."""

    scores: list[list[Verdict]]

    def ready(self) -> bool:
        return True

    def wait(self) -> list[list[Verdict]]:
        return self.scores


def rollouts(
    names: int, size: int, reward: Callable[[Prompt], list[Verdict]], count: int = 2, most: float = 1.0
) -> RolloutScheduler:
    prompts = {f"p{n}": Prompt(f"p{n}", [n]) for n in range(names)}
    settings = rlhf(algorithm="dapo", prompts_per_step=size, samples_per_prompt=count, max_failed_verdicts=most)
    ledger = Ledger(prompts.values(), 0)
    return RolloutScheduler(
        InstantFleet(count), ledger, prompts, settings, 0, lambda asked, _: Given(list(map(reward, asked)))
    )


def test_prompts_without_a_difference_are_replaced_and_recorded():
    scheduler = rollouts(names=40, size=6, reward=lambda prompt: [1.0, float(prompt.token_ids[0] % 3 == 0)])
    batch = scheduler.scored_batch(0, dynamic=True)
    assert [min(rewards) for rewards in batch.rewards] == [0.0] * 6
    assert all(prompt.token_ids[0] % 3 for prompt in batch.prompts)
    assert [turn.prompt for turn in batch.turns] == [prompt.id for prompt in batch.prompts]
    assert scheduler.ledger.outcomes == {"trained": 0, "filtered": batch.filtered, "failed": 0}
    assert batch.filtered > 0
    assert scheduler.ledger.outstanding == batch.turns


def test_without_dynamic_sampling_every_prompt_stays():
    scheduler = rollouts(names=4, size=3, reward=lambda _: [1.0, 1.0])
    batch = scheduler.scored_batch(0, dynamic=False)
    assert (len(batch.groups), batch.filtered) == (3, 0)


def test_rewards_that_are_equal_for_every_prompt_end_the_run():
    scheduler = rollouts(names=4, size=3, reward=lambda _: [1.0, 1.0])
    with pytest.raises(StageError, match=r"samples of \d+ prompts in turn got one reward"):
        scheduler.scored_batch(0, dynamic=True)
    assert scheduler.ledger.outstanding == []


FAILED = Failure("reward function f raised KeyError: 'x', for prompt 'p' and answer 'a'")


def test_a_sample_without_a_verdict_is_left_out_and_counted():
    scheduler = rollouts(names=3, size=3, reward=lambda _: [1.0, FAILED, 3.0, 0.0], count=4)
    batch = scheduler.scored_batch(0, dynamic=True)
    assert batch.rewards == [[1.0, 3.0, 0.0]] * 3
    assert [[sample.id.sample for sample in group] for group in batch.groups] == [[0, 2, 3]] * 3
    assert (batch.failed_verdicts, batch.redrawn, batch.failed) == (3, 0, 0)
    counts = scheduler.ledger.verdicts
    assert (counts.given, counts.failed) == (12, 3)
    assert counts.remark() == f"3 of 12 answers got no reward and were left out; the last: {FAILED.reason}"


@pytest.mark.parametrize(
    ("verdicts", "left"), [([FAILED, 1.0], 0), ([FAILED, 1.0, 2.0], 2), ([FAILED] * 3 + [1.0] * 2, 0)]
)
def test_a_prompt_with_too_few_verdicts_is_drawn_again_by_another_seed(verdicts: list[Verdict], left: int):
    asked: Counter[str] = Counter()

    def reward(prompt: Prompt) -> list[Verdict]:
        asked[prompt.id] += 1
        return verdicts if prompt.id == "p1" and asked["p1"] == 1 else [float(i) for i in range(len(verdicts))]

    scheduler = rollouts(names=3, size=3, reward=reward, count=len(verdicts))
    batch = scheduler.scored_batch(0, dynamic=False)
    assert sorted(prompt.id for prompt in batch.prompts) == ["p0", "p1", "p2"]
    assert batch.redrawn == asked["p1"] - 1 == (not left)
    seeds = scheduler.fleet.seeds
    assert len(set(seeds[PromptTurn(0, "p1")])) == len(seeds[PromptTurn(0, "p1")]) == asked["p1"]
    assert seeds[PromptTurn(0, "p0")] == seeds[PromptTurn(0, "p2")] == seeds[PromptTurn(0, "p1")][:1]


def test_a_prompt_that_never_gets_verdicts_is_recorded_as_failed_once():
    scheduler = rollouts(names=4, size=3, reward=lambda prompt: [FAILED, 1.0] if prompt.id == "p1" else [0.0, 1.0])
    batch = scheduler.scored_batch(0, dynamic=False)
    assert sorted(prompt.id for prompt in batch.prompts) == ["p0", "p2", "p3"]
    assert len(scheduler.fleet.seeds[PromptTurn(0, "p1")]) == MAX_DRAWS == batch.failed_verdicts
    assert (batch.redrawn, batch.failed) == (MAX_DRAWS - 1, 1)
    assert scheduler.ledger.outcomes == {"trained": 0, "filtered": 0, "failed": 1}
    assert scheduler.ledger.outstanding == batch.turns


def test_too_many_failed_verdicts_end_the_run_in_their_own_words_also_after_it_was_resumed():
    def failing(share: float) -> Callable[[Prompt], list[Verdict]]:
        numbers = itertools.count()
        return lambda _: [FAILED if next(numbers) % 20 < 20 * share else float(i) for i in range(10)]

    well = rollouts(names=40, size=10, reward=failing(0.05), count=10, most=0.1)
    for _ in range(20):
        batch = well.scored_batch(0, dynamic=False)
        assert batch.failed_verdicts == 5
        well.ledger.commit(batch.turns, Outcome.TRAINED)
    state = json.loads(json.dumps(well.ledger.state_dict()))
    ill = rollouts(names=40, size=10, reward=failing(0.2), count=10, most=0.1)
    ill.ledger.load_state_dict(state)
    assert ill.ledger.state_dict() == state
    # 0.05 x + 0.2 (1 - x) = 0.1 where x is a third of the window of ten batches.
    for _ in range(3):
        ill.ledger.commit(ill.scored_batch(0, dynamic=False).turns, Outcome.TRAINED)
    with pytest.raises(StageError, match=r"max_failed_verdicts \(0.1\) allows; the last: reward function f raised"):
        ill.scored_batch(0, dynamic=False)


def test_a_reward_that_always_fails_ends_the_run_in_its_first_step():
    scheduler = rollouts(names=4, size=4, reward=lambda _: [FAILED] * 8, count=8, most=0.1)
    with pytest.raises(StageError, match="32 of the last 32 answers got no reward"):
        scheduler.scored_batch(0, dynamic=False)
