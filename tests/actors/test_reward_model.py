"""The reward model in an actor."""

import shutil
from pathlib import Path

import pytest

from actors.reward_model import ModelReward
from actors.sample import Prompt, Sample
from tests.tiny import write_tiny_reward_model


def test_the_reward_of_an_ensemble_is_the_mean_of_its_members(tmp_path: Path):
    for folder, seed in ((tmp_path, 3), (tmp_path / "member-2", 4), (tmp_path / "other", 4)):
        write_tiny_reward_model(folder, mean=0.5, deviation=2.0, seed=seed)
    prompt = Prompt("a", [2, 90, 4, 3])
    group = [Sample("a", 0, ids, [], [], "stop", "") for ids in ([50, 51, 4], [60, 4])]
    (together,) = ModelReward(tmp_path, threads=1).score([prompt], [group])
    (second,) = ModelReward(tmp_path / "other", threads=1).score([prompt], [group])
    shutil.rmtree(tmp_path / "member-2")
    (first,) = ModelReward(tmp_path, threads=1).score([prompt], [group])
    assert abs(first[0] - second[0]) > 1e-3
    assert together == pytest.approx([(one + other) / 2 for one, other in zip(first, second, strict=True)], abs=1e-6)
