"""Rewards by functions, their sum, and the batches that they make."""

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.functions.caller import CallLimits
from actors.orchestrator.ledger import MAX_DRAWS, Ledger, Outcome
from actors.orchestrator.scheduler import RolloutScheduler
from actors.rewards.builtin import same_number, same_text
from actors.rewards.function import FunctionReward
from actors.rewards.pool import RewardWorkerPool, WeightedRewards, add, restartable
from actors.types import Failure, Prompt, PromptTurn, RewardInput, RolloutId, Sample, Sampling, Verdict
from cluster.errors import DeadlineError, EngineError, StageError, UserError
from cluster.recipe.functions import load_function
from cluster.runtime.plan import Allocation
from tests.helpers import rlhf, wait_until

FUNCTIONS = "tests.actors.functions.reward_functions"
INPUTS = {"a": RewardInput([{"role": "user", "content": "two and two"}], {"answer": "4"})}
PROMPTS = [Prompt("a", [1, 2])]
ASKED = [INPUTS[prompt.id] for prompt in PROMPTS]


def sample(text: str) -> Sample:
    return Sample(RolloutId(0, "a", 0), [5], [-0.1], [0], "stop", text)


LIMITS = CallLimits(seconds=30, attempts=1, at_once=4)


@contextmanager
def function_reward(name: str) -> Iterator[FunctionReward]:
    reward = FunctionReward(name, LIMITS)
    yield reward
    reward.close()


def test_a_function_sees_question_and_answer_with_all_turns_and_special_tokens():
    turns = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
    later = replace(sample("abc"), history=turns, raw_text="[TOOL_CALLS]abc")
    with function_reward(f"{FUNCTIONS}:length") as reward:
        assert reward.score(PROMPTS, [[sample("abc"), later, sample("")]], ASKED) == [[4.0, 6.0, 1.0]]
    with function_reward(f"{FUNCTIONS}:calls_a_tool") as reward:
        assert reward.score(PROMPTS, [[sample("abc"), later]], ASKED) == [[0.0, 1.0]]


def test_the_reward_of_an_environment_counts_by_its_weight_and_its_failure_for_all():
    failed = replace(sample("a"), failure="environment e raised")
    group = [replace(sample("a"), reward=2.0), failed, sample("b")]
    ((first, second, third),) = WeightedRewards([], PROMPTS, [group], environment_weight=0.5).wait()
    assert (first, second) == (1.0, Failure("environment e raised"))
    assert third == Failure("the environment gave no reward, for prompt 'a'")
    assert WeightedRewards([], PROMPTS, [group]).wait() == [[0.0, Failure("environment e raised"), 0.0]]


def test_a_failed_verdict_names_prompt_and_answer():
    with function_reward(f"{FUNCTIONS}:unsound") as reward:
        ((first, failed),) = reward.score(PROMPTS, [[sample("x"), sample("nan")]], ASKED)
    assert first == 1.0
    assert failed == Failure(
        f"reward function {FUNCTIONS}:unsound gave nan: it must be a finite number, for prompt 'a' and answer 'nan'"
    )


def test_a_sum_with_a_failure_is_the_failure():
    one, other = Failure("one"), Failure("other")
    assert add(1.0, 2.0, 3.0) == 7.0
    assert add(one, 0.0, 1.0) == add(one, 1.0, other) == add(1.0, 0.0, one) == one


@pytest.mark.parametrize("name", ["no.such.module:f", f"{FUNCTIONS}:nothing", f"{FUNCTIONS}:COUNT"])
def test_a_function_that_is_not_there_is_named(name: str):
    with pytest.raises(UserError, match=f"reward function {name}"):
        load_function(name)


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "unfinished_checks.py").write_text("def check(prompt, answer:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="importing unfinished_checks raised SyntaxError"):
        load_function("unfinished_checks:check")


@pytest.mark.parametrize(
    ("check", "right", "answer", "reward"),
    [
        (same_number, "12 + 30 = 42\n#### 42", "It is 42.", 1),
        (same_number, "1,042", "1042", 1),
        (same_number, "42", "42 is not 43", 0),
        (same_number, "-3", "3", 0),
        (same_number, "2.50", "2.5", 1),
        (same_number, "42", "I do not know", 0),
        (same_text, "New Delhi", " new  delhi", 1),
        (same_text, "New Delhi", "Delhi", 0),
    ],
)
def test_checks_by_hand(check, right: str, answer: str, reward: int):
    assert check(RewardInput([], {"answer": right}), answer) == reward


def test_a_check_without_a_right_answer_is_an_error():
    with function_reward("actors.rewards.builtin:same_text") as reward:
        ((failed,),) = reward.score(PROMPTS, [[sample("x")]], [RewardInput([], {})])
    assert "no field 'answer'" in failed.reason


def test_a_module_that_has_moved_is_found_under_its_former_name(capsys: pytest.CaptureFixture[str]):
    assert load_function("actors.checks:same_text") is same_text
    assert "is now actors.rewards.builtin:same_text" in capsys.readouterr().err


def function_actor(name: str, restarts: int = 3) -> Any:
    return restartable(FunctionReward, Allocation(cpus=0, gpus=0, threads=1), restarts).remote(
        f"{FUNCTIONS}:{name}", LIMITS
    )


@pytest.mark.slow
def test_rewards_are_added_and_a_failure_is_of_its_sample_alone(ray_session: None):
    def pool(name: str, weight: float) -> RewardWorkerPool:
        return RewardWorkerPool(f"the function {name}", partial(function_actor, name), weight, lambda _: 90, INPUTS)

    pools = [pool("length", 1.0), pool("length", -0.5), pool("unsound", 1.0)]
    try:
        groups = [[sample("abc"), sample("")]]
        asked = WeightedRewards(pools[:2], PROMPTS, groups)
        wait_until(asked.ready, 60, "the rewards")
        assert asked.wait() == asked.wait() == [[2.0, 0.5]]
        ((first, second, third, fourth),) = WeightedRewards(
            pools, PROMPTS, [[sample("raise"), sample("x"), sample("exit"), sample("")]]
        ).wait()
        assert "raised KeyError" in first.reason
        assert (second, fourth) == (2.0, 1.5)
        assert "ended its process (signal 9)" in third.reason
    finally:
        for one in pools:
            one.close()


class Dies:
    """A reward whose actor dies of every request."""

    def score(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs:
    """A reward that answers nothing."""

    def score(self, *_: object) -> None:
        time.sleep(60)


@pytest.mark.slow
def test_a_reward_actor_that_does_not_answer_or_always_dies_is_named(ray_session: None):
    for kind, seconds, error in ((Dies, 60.0, EngineError), (Hangs, 0.2, DeadlineError)):
        launch = restartable(kind, Allocation(cpus=0, gpus=0, threads=1), 1).remote
        pool = RewardWorkerPool("the model", launch, 1.0, lambda _, seconds=seconds: seconds)
        try:
            pool.wait_ready(120)
            with pytest.raises(error, match="the rewards of the model"):
                WeightedRewards([pool], PROMPTS, [[sample("x")]]).wait()
        finally:
            pool.close()


@pytest.mark.slow
def test_several_actors_share_a_step_and_one_that_is_killed_loses_nothing(ray_session: None):
    prompts = [Prompt(f"p{number}", [1]) for number in range(7)]
    groups = [[sample(str(number))] for number in range(7)]
    inputs = {prompt.id: RewardInput([], {}) for prompt in prompts}
    pool = RewardWorkerPool(
        "the function signed", partial(function_actor, "signed"), 1.0, lambda _: 120, inputs, actors=2
    )

    def scored() -> tuple[list[int], list[float]]:
        scores = [row[0] for row in WeightedRewards([pool], prompts, groups).wait()]
        return [int(score) for score in scores], [round(score % 1 * 1e9) for score in scores]

    try:
        pool.wait_ready(180)
        answers, processes = scored()
        assert answers == list(range(7))
        assert processes == [processes[0]] * 3 + [processes[-1]] * 4
        assert processes[0] != processes[-1]
        threading.Timer(0.2, os.kill, (processes[0], signal.SIGKILL)).start()
        answers, others = scored()
        assert answers == list(range(7))
        assert processes[0] not in others
        # A new actor gets requests once it has started, without being waited for; one that is gone gets none.
        pool.resize(3)
        assert pool.size == 3
        wait_until(lambda: pool.settled, 180, "the third actor")
        assert len(set(scored()[1])) == 3
        # Actors that are removed first answer their requests.
        asked = WeightedRewards([pool], prompts, groups)
        pool.resize(1)
        scores = [row[0] for row in asked.wait()]
        processes = {round(score % 1 * 1e9) for score in scores}
        assert ([int(score) for score in scores], len(processes)) == (list(range(7)), 3)
        (staying,) = set(scored()[1])
        assert pool.size == 1
        wait_until(lambda: not any(map(psutil.pid_exists, processes - {staying})), 60, "the others to end")
    finally:
        pool.close()


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
