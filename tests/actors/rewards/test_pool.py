"""Rewards by functions, their sum, and the batches that they make."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.orchestrator.ledger import Ledger
from actors.orchestrator.scheduler import ROUNDS, RolloutScheduler
from actors.rewards.builtin import same_number, same_text
from actors.rewards.function import FunctionReward
from actors.rewards.pool import RewardWorkerPool, WeightedRewards, restartable
from actors.types import Prompt, RewardInput, RolloutId, Sample, Sampling
from cluster.errors import DeadlineError, EngineError, StageError, UserError, known_failure
from cluster.recipe.functions import load_function
from cluster.runtime.plan import Allocation
from tests.helpers import rlhf, wait_until

# Actors import this file: what needs torch is tested in another, which spares each 9 s of processor time.
HERE = "tests.actors.rewards.test_pool"
INPUTS = {"a": RewardInput([{"role": "user", "content": "two and two"}], {"answer": "4"})}
PROMPTS = [Prompt("a", [1, 2])]
ASKED = [INPUTS[prompt.id] for prompt in PROMPTS]


def sample(text: str) -> Sample:
    return Sample(RolloutId(0, "a", 0), [5], [-0.1], [0], "stop", text)


def length(prompt: RewardInput, answer: str) -> float:
    return len(answer) + len(prompt.messages)


def broken(prompt: RewardInput, answer: str) -> float:
    return {"nan": float("nan"), "text": "much"}.get(answer) or 1 / 0  # type: ignore[return-value]


def hangs(prompt: RewardInput, answer: str) -> float:
    time.sleep(60)
    return 1.0


def test_a_function_sees_question_and_answer():
    scores = FunctionReward(f"{HERE}:length").score(PROMPTS, [[sample("abc"), sample("")]], ASKED)
    assert scores == [[4.0, 1.0]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [("nan", "broken gave nan"), ("text", "broken gave 'much'"), ("x", "broken raised ZeroDivisionError")],
)
def test_a_reward_that_is_none_is_named(answer: str, message: str):
    with pytest.raises(StageError, match=f"{message} for prompt 'a' and answer '{answer}'"):
        FunctionReward(f"{HERE}:broken").score(PROMPTS, [[sample(answer)]], ASKED)


@pytest.mark.parametrize("name", ["no.such.module:f", f"{HERE}:nothing", f"{HERE}:INPUTS"])
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


def test_a_check_without_a_right_answer_says_so():
    with pytest.raises(StageError, match="no field 'answer'"):
        FunctionReward("actors.rewards.builtin:same_text").score(PROMPTS, [[sample("x")]], [RewardInput([], {})])


def test_a_module_that_has_moved_is_found_under_its_former_name(capsys: pytest.CaptureFixture[str]):
    assert load_function("actors.checks:same_text") is same_text
    assert "is now actors.rewards.builtin:same_text" in capsys.readouterr().err


def function_actor(name: str, restarts: int = 3) -> Any:
    return restartable(FunctionReward, Allocation(cpus=0, gpus=0, threads=1), restarts).remote(f"{HERE}:{name}")


@pytest.mark.slow
def test_rewards_are_added_and_a_function_that_hangs_is_named(ray_session: None):
    def pool(name: str, weight: float, seconds: float) -> RewardWorkerPool:
        return RewardWorkerPool(f"the function {name}", partial(function_actor, name), weight, seconds, INPUTS)

    pools = [
        pool("length", 1.0, 60),
        pool("length", -0.5, 60),
        pool("hangs", 1.0, 0.2),
        pool("broken", 1, 60),
    ]
    try:
        groups = [[sample("abc"), sample("")]]
        asked = WeightedRewards(pools[:2], PROMPTS, groups)
        wait_until(asked.ready, 60, "the rewards")
        assert asked.wait() == asked.wait() == [[2.0, 0.5]]
        pools[2].wait_ready(180)
        with pytest.raises(DeadlineError, match="rewards of the function hangs"):
            WeightedRewards(pools[:3], PROMPTS, groups).wait()
        with pytest.raises(StageError, match="raised ZeroDivisionError") as caught:
            WeightedRewards(pools[3:], PROMPTS, groups).wait()
        assert "broken raised" in str(known_failure(caught.value))
    finally:
        for one in pools:
            one.close()


def dies_once(prompt: RewardInput, answer: str) -> float:
    """Kills its own process unless a file says that it did so before."""
    mark = Path(prompt.metadata["mark"])
    if mark.exists():
        return 1.0
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def always_dies(prompt: RewardInput, answer: str) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_a_reward_actor_that_is_killed_is_asked_again_and_one_that_always_dies_is_named(
    ray_session: None, tmp_path: Path
):
    inputs = {"a": RewardInput([], {"mark": str(tmp_path / "mark")})}
    for name, restarts in (("dies_once", 3), ("always_dies", 1)):
        pool = RewardWorkerPool(f"the function {name}", partial(function_actor, name, restarts), 2.0, 90, inputs)
        try:
            if name == "dies_once":
                assert WeightedRewards([pool], PROMPTS, [[sample("x"), sample("y")]]).wait() == [[2.0, 2.0]]
            else:
                with pytest.raises(EngineError, match="died before it gave the rewards of the function always_dies"):
                    WeightedRewards([pool], PROMPTS, [[sample("x")]]).wait()
        finally:
            pool.close()


def signed(prompt: RewardInput, answer: str) -> float:
    """The answer, a number, and behind the point who was asked; slow, so that a kill comes in its midst."""
    time.sleep(0.5)
    return int(answer) + os.getpid() / 1e9


@pytest.mark.slow
def test_several_actors_share_a_step_and_one_that_is_killed_loses_nothing(ray_session: None):
    prompts = [Prompt(f"p{number}", [1]) for number in range(7)]
    groups = [[sample(str(number))] for number in range(7)]
    inputs = {prompt.id: RewardInput([], {}) for prompt in prompts}
    pool = RewardWorkerPool("the function signed", partial(function_actor, "signed"), 1.0, 120, inputs, actors=2)

    def scored() -> tuple[list[int], list[float]]:
        scores = [row[0] for row in WeightedRewards([pool], prompts, groups).wait()]
        return [int(score) for score in scores], [round(score % 1 * 1e9) for score in scores]

    try:
        pool.wait_ready(180)
        answers, processes = scored()
        assert answers == list(range(7))
        assert processes == [processes[0]] * 3 + [processes[-1]] * 4
        assert processes[0] != processes[-1]
        threading.Timer(0.7, os.kill, (processes[0], signal.SIGKILL)).start()
        answers, others = scored()
        assert answers == list(range(7))
        assert processes[0] not in others
        # Whoever joins is asked once it has started; nobody waits for it, and nobody is asked who has gone.
        pool.resize(3)
        assert pool.size == 3
        wait_until(lambda: pool.settled, 180, "the third actor")
        assert len(set(scored()[1])) == 3
        # Who has been asked answers first.
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

    waiting: list[Prompt] = field(default_factory=list)

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        assert sampling.count == 2
        self.waiting += prompts

    def collect_all(self, at_least: int) -> list[list[Sample]]:
        assert len(self.waiting) >= at_least
        done, self.waiting = self.waiting, []
        return [
            [Sample(RolloutId(prompt.epoch, prompt.id, i), [5], [0.0], [0], "stop", "") for i in (0, 1)]
            for prompt in done
        ]


@dataclass
class Given:
    """Rewards that are ready."""

    scores: list[list[float]]

    def ready(self) -> bool:
        return True

    def wait(self) -> list[list[float]]:
        return self.scores


def rollouts(names: int, size: int, reward: Callable[[Prompt], list[float]]) -> RolloutScheduler:
    prompts = {f"p{n}": Prompt(f"p{n}", [n]) for n in range(names)}
    settings = rlhf(algorithm="dapo", prompts_per_step=size, samples_per_prompt=2)
    ledger = Ledger(prompts.values(), 0)
    return RolloutScheduler(
        InstantFleet(), ledger, prompts, settings, 0, lambda asked, _: Given(list(map(reward, asked)))
    )


def test_prompts_without_a_difference_are_replaced_and_recorded():
    scheduler = rollouts(names=40, size=6, reward=lambda prompt: [1.0, float(prompt.token_ids[0] % 3 == 0)])
    batch = scheduler.scored_batch(0, dynamic=True)
    assert [min(rewards) for rewards in batch.rewards] == [0.0] * 6
    assert all(prompt.token_ids[0] % 3 for prompt in batch.prompts)
    assert [turn.prompt for turn in batch.turns] == [prompt.id for prompt in batch.prompts]
    assert scheduler.ledger.outcomes == {"trained": 0, "filtered": batch.filtered}
    assert batch.filtered > 0
    assert scheduler.ledger.outstanding == batch.turns


def test_without_dynamic_sampling_every_prompt_stays():
    scheduler = rollouts(names=4, size=3, reward=lambda _: [1.0, 1.0])
    batch = scheduler.scored_batch(0, dynamic=False)
    assert (len(batch.groups), batch.filtered) == (3, 0)


def test_a_task_that_tells_nothing_apart_ends_the_run():
    scheduler = rollouts(names=4, size=3, reward=lambda _: [1.0, 1.0])
    with pytest.raises(StageError, match=f"samples of {3 * ROUNDS} prompts in turn got one reward"):
        scheduler.scored_batch(0, dynamic=True)
    assert scheduler.ledger.outstanding == []
