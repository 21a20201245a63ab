"""A learner of two workers takes the steps of a learner of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.learner.learner import Learner
from actors.learner.remote import LearnerLostError, RemoteLearner
from actors.rollout.weights import unpack
from actors.types import Prompt, RolloutId, Sample
from cluster.errors import StageError
from cluster.recipe.base import Lora
from cluster.recipe.rlhf.section import Rlhf
from cluster.runtime.plan import Allocation
from tests.actors.learner.hand_made import Folders, samples_of
from tests.helpers import rlhf

pytestmark = pytest.mark.slow

# Three prompts, so that one of two workers has more; answers of unequal lengths, and one group of a single answer.
PROMPTS = [Prompt("a", [2, 10, 11, 4, 3]), Prompt("b", [2, 12, 4, 3]), Prompt("c", [2, 9, 3])]
ANSWERS = [[[20, 21, 4], [22, 4]], [[23, 4], [24, 25, 26, 4]], [[27, 28, 4]]]
REWARDS = [[1.0, -1.0], [0.5, -0.5], [0.25]]


@contextmanager
def two_workers(folders: Folders, settings: Rlhf, checkpoint: Path) -> Iterator[RemoteLearner]:
    share = Allocation(cpus=0.1, gpus=0, threads=1)
    made = RemoteLearner(share, 2, checkpoint, torch.float32, 120, settings, *folders, 0, 1)
    try:
        yield made
    finally:
        made.close()


def step(learner: Learner | RemoteLearner) -> dict[str, Any]:
    return learner.step(PROMPTS, samples_of(learner, PROMPTS, ANSWERS, 0), REWARDS, {})


def assert_alike(row: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name != "learner_seconds":
            assert row[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    # AdamW's first steps are signs where a gradient is tiny, and sums in another order turn some.
    apart = torch.cat([(weights[name] - expected[name]).flatten().abs() for name in expected])
    assert float(apart.mean()) < 2e-5
    assert float(apart.max()) < 5e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "ppo", "minibatches": 2, "entropy_bonus": 0.01, "pretrain_mix": 0.1},
        {"algorithm": "grpo", "micro_batch_rows": 1, "kl_coefficient": 0.1, "lora": Lora(rank=4, alpha=8)},
    ],
)
def test_two_workers_learn_what_one_learns_and_either_goes_on_from_the_others_checkpoint(
    folders: Folders, settings: dict[str, object], tmp_path: Path, ray_session: None
):
    given = rlhf(**{"learning_rate": 1e-3, "micro_batch_rows": 2, "min_entropy": 1e-6, **settings})
    alone = Learner(given, *folders, seed=0, threads=1)
    step(alone)
    alone.save(tmp_path / "first", {"by": 1})
    with two_workers(folders, given, tmp_path / "checkpoint") as two_after_one:
        assert two_after_one.restore() is None
        alone.save(tmp_path / "checkpoint", {"by": 1})
        state = two_after_one.restore()
        assert state is not None
        assert state["by"] == 1
        assert_alike(step(two_after_one), step(alone))
        weights = two_after_one.weights()
        assert_close(weights, alone.weights())
        published = two_after_one.publish(7)
        sent = unpack(ray.get(published.ref), published.dtype)
        assert sent.keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in sent.items())
        two_after_one.save({"by": 2})
        two_after_one.export(tmp_path / "policy", False)
        two_after_one.export(tmp_path / "kept", True)
        assert_nothing_is_learned_from_nan(two_after_one)
        assert_no_other_waits_for_one_that_died(two_after_one)
    one_after_two = Learner(given, *folders, seed=0, threads=1)
    state = one_after_two.restore(tmp_path / "checkpoint")
    assert state is not None
    assert state["by"] == 2
    assert_alike(step(one_after_two), step(alone))
    assert_close(one_after_two.weights(), alone.weights())
    # The kept policy is the one before the last step, the last that was measured.
    again = Learner(given, *folders, seed=0, threads=1)
    again.restore(tmp_path / "first")
    step(again)
    again.export(tmp_path / "kept alone", True)
    policy, kept, kept_alone = (exported(tmp_path / name) for name in ("policy", "kept", "kept alone"))
    assert_close(kept, kept_alone)
    assert any(not torch.equal(value, kept[name]) for name, value in policy.items())
    if given.lora is None:
        assert all(torch.equal(value, weights[name]) for name, value in policy.items())


def assert_nothing_is_learned_from_nan(learner: RemoteLearner) -> None:
    with pytest.raises(StageError, match="of prompt 'a' is nan: nothing was learned"):
        learner.step(
            PROMPTS, [[Sample(RolloutId(0, "a", 0), [5], [0.0], [0], "stop", "")]] * 3, [[float("nan")]] * 3, {}
        )
    assert step(learner)["version"] == 3


def assert_no_other_waits_for_one_that_died(learner: RemoteLearner) -> None:
    ray.kill(learner.actors[1])
    with pytest.raises(LearnerLostError, match="died before it gave the learner's"):
        step(learner)


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}
