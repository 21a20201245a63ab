"""Scores of a reward model, in this process and in an actor."""

from pathlib import Path

import pytest
import torch

from actors.model.reward_head import load_reward_model, scalar_outputs
from actors.rewards.scorer import Scorer, remote_scorer
from cluster.runtime.plan import Allocation
from tests.tiny import write_tiny_reward_model

SEQUENCES = [[2, *range(50, 50 + length), 4] for length in (3, 17, 1, 9, 30, 2)]
SHARE = Allocation(cpus=0.1, gpus=0, threads=1)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for seed in (3, 4):
        write_tiny_reward_model(tmp_path / str(seed), mean=0.0, deviation=1.0, seed=seed)
    return [tmp_path / "3", tmp_path / "4"]


@pytest.mark.slow
def test_an_actor_gives_the_scores_of_this_process(folders: list[Path], ray_session: None):
    with remote_scorer(SHARE, "bfloat16", deadline=120) as scores:
        assert scores(folders, SEQUENCES) == Scorer("bfloat16", threads=1).scores(folders, SEQUENCES)
        assert scores(folders[:1], []) == []


def test_the_head_computes_in_float32_whatever_the_trunk(folders: list[Path]):
    model = load_reward_model(folders[0])
    states = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = scalar_outputs(model, states.bfloat16())
    exact = states.bfloat16().double() @ model.score.weight.double().squeeze(0)
    assert torch.allclose(found.double(), exact, rtol=0, atol=1e-5)
    # Rounded, as autocast would have it, they would tie or change places.
    assert len(set(exact.bfloat16().tolist())) < len(set(found.tolist())) == 64
