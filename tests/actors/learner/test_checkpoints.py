"""Checkpoints of the learner: a restored one goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch

from actors.learner.learner import Learner
from actors.trainer.job import checkpoints_in
from cluster.errors import UserError
from tests.actors.learner.hand_made import LORA, PROMPTS, REWARDS, Folders, make, samples


@pytest.mark.parametrize("settings", [{"algorithm": "grpo"}, {"algorithm": "ppo"}, {"lora": LORA}])
def test_resuming_equals_going_on(folders, settings: dict[str, object], tmp_path: Path):
    first = make(folders, **settings)
    first.step(PROMPTS, samples(first), REWARDS)
    first.save(tmp_path / "checkpoint", {"step": 1})
    second = make(folders, **settings)
    state = second.restore(tmp_path / "checkpoint")
    assert state is not None
    assert (state["step"], second.version) == (1, 1)
    for learner in (first, second):
        learner.step(PROMPTS, samples(learner), REWARDS)
    for name, value in first.weights().items():
        assert torch.equal(value, second.weights()[name]), name


def test_nothing_to_restore(folders, tmp_path: Path):
    assert make(folders).restore(tmp_path / "none") is None


def test_a_kill_while_a_checkpoint_is_written_loses_nothing(folders, tmp_path: Path):
    learner = make(folders)
    for step in (3, 4):
        learner.step(PROMPTS, samples(learner), REWARDS)
        learner.save(tmp_path, {"step": step})
    ((_, first), (_, second)) = checkpoints_in(tmp_path)
    second.rename(second.with_name("side_2"))
    again = make(folders)
    state = again.restore(tmp_path)
    assert state is not None
    assert (state["step"], again.version) == (3, 1)
    assert checkpoints_in(tmp_path) == [(1, first)]
    # The half-written checkpoint is not in the way when the step is repeated.
    again.step(PROMPTS, samples(again), REWARDS)
    again.save(tmp_path, {"step": 4})
    for name, value in make_restored(folders, tmp_path).weights().items():
        assert torch.equal(value, learner.weights()[name]), name


def make_restored(folders: Folders, folder: Path) -> Learner:
    learner = make(folders)
    assert learner.restore(folder) is not None
    return learner


def test_a_checkpoint_of_an_earlier_version_is_named(folders, tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="by an earlier version, whose checkpoint is in another format: remove"):
        make(folders).restore(tmp_path)


def test_the_divergence_coefficient_adapts_and_is_kept(folders, tmp_path: Path):
    learner = make(folders, kl_coefficient=0.5, kl_target=3.0)
    figures = learner.step(PROMPTS, samples(learner), REWARDS)
    assert figures["kl_coefficient"] == 0.5
    learner.save(tmp_path / "checkpoint", {})
    again = make(folders, kl_coefficient=0.5, kl_target=3.0)
    again.restore(tmp_path / "checkpoint")
    # No divergence yet: the error is at its bound of -0.2.
    assert again.step(PROMPTS, samples(again), REWARDS)["kl_coefficient"] == pytest.approx(0.5 * 0.98)


def test_length_change_is_relative_to_the_first_step(folders, tmp_path: Path):
    learner = make(folders)
    assert learner.step(PROMPTS, samples(learner), REWARDS)["length_change"] == 1
    learner.save(tmp_path / "checkpoint", {})
    again = make(folders)
    again.restore(tmp_path / "checkpoint")
    first, second = samples(again)
    figures = again.step(PROMPTS, [first[:1], second[1:]], [[1.0], [0.5]])
    assert figures["length_change"] == pytest.approx(3.5 / (11 / 4))


def test_signs_of_over_optimization_compare_with_the_first_step_across_a_restart(folders, tmp_path: Path):
    learner = make(folders)
    first, second = samples(learner)
    assert learner.step(PROMPTS, [first, second], REWARDS)["overoptimization"] == 0
    learner.save(tmp_path / "checkpoint", {})
    again = make(folders)
    again.restore(tmp_path / "checkpoint")
    figures = [own.step(PROMPTS, [first[:1] * 2, second], REWARDS) for own in (learner, again)]
    assert figures[0]["token_divergence"] > 0
    assert figures[0]["overoptimization"] == pytest.approx(figures[0]["token_divergence"] / 2)
    assert [row["overoptimization"] for row in figures] == [figures[0]["overoptimization"]] * 2
