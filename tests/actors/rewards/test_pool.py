"""Rewards by functions, their sum, and the batches that they make."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.functions.caller import CallLimits
from actors.rewards.builtin import same_number, same_text
from actors.rewards.function import FunctionReward
from actors.rewards.pool import RewardWorkerPool, WeightedRewards, add, restartable
from actors.types import Failure, Prompt, RewardInput, RolloutId, Sample
from cluster.errors import DeadlineError, EngineError, UserError
from cluster.recipe.functions import load_function
from cluster.runtime.plan import Allocation
from tests.helpers import wait_until

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
