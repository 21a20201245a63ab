"""Advantages of rewards that are equal, or that differ only by rounding."""

import numpy as np
import pytest
import torch

from actors.algorithms.losses import RolloutBatch
from actors.algorithms.normalization import are_equal, group_statistics, whitened
from actors.algorithms.registry import ALGORITHMS
from actors.algorithms.shaping import at_last_token

GROUPED = [name for name in ALGORITHMS if name not in ("ppo", "reinforce++")]


def batch_of(rewards: list[float], groups: list[int], length: int = 3) -> RolloutBatch:
    mask = torch.zeros(len(rewards), length + 1, dtype=torch.bool)
    mask[:, 1:] = True
    zeros = torch.zeros(mask.shape)
    return RolloutBatch(zeros.long(), mask, zeros, torch.tensor(rewards), torch.tensor(groups), mask)


def advantages_of(name: str, batch: RolloutBatch, values: torch.Tensor | None = None) -> torch.Tensor:
    rewards = at_last_token(batch.rewards, batch.completion_mask)
    return ALGORITHMS[name].targets(batch, rewards, values)[0]


@pytest.mark.parametrize("reward", [0.7, 1.1, -3.3, 0.0, 1e4 / 3])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_equal_rewards_of_many_answers_have_no_advantage(name: str, reward: float):
    batch = batch_of([reward] * 128, [row // 8 for row in range(128)])
    # With a critic that is right, returns differ from values by rounding alone.
    values = torch.full(batch.completion_mask.shape, reward) * batch.completion_mask if name == "ppo" else None
    assert advantages_of(name, batch, values).eq(0).all()


@pytest.mark.parametrize("name", GROUPED)
def test_rewards_that_differ_by_rounding_have_no_advantage(name: str):
    # Neighbors in float32, as a reward model gives them to one answer in batches of other shapes.
    up = float(np.nextafter(np.float32(0.7), np.float32(1)))
    assert advantages_of(name, batch_of([0.7, up, 0.7, up], [0, 0, 0, 0])).eq(0).all()
    assert advantages_of(name, batch_of([0.7, 0.7001, 0.7, 0.7], [0, 0, 0, 0])).abs().max() > 0
    assert are_equal([0.7, up])
    assert not are_equal([0.7, 0.7001])


def test_a_critic_whose_errors_are_rounding_teaches_the_policy_nothing():
    chance = torch.Generator().manual_seed(0)
    batch = batch_of([0.7] * 64, list(range(64)))
    values = (0.7 + 3e-8 * torch.randn(batch.completion_mask.shape, generator=chance)) * batch.completion_mask
    assert advantages_of("ppo", batch, values).eq(0).all()


def test_whitened_values_have_mean_0_and_deviation_1_at_any_scale():
    chance = torch.Generator().manual_seed(1)
    mask = torch.rand(32, 9, generator=chance) < 0.7
    for scale in (1e-9, 1.0, 1e9):
        found = whitened(scale * torch.randn(32, 9, generator=chance), mask)[mask].double()
        assert float(found.mean()) == pytest.approx(0, abs=1e-6)
        assert float(found.std(unbiased=False)) == pytest.approx(1, abs=1e-6)


def test_group_statistics_equal_numpys_in_float64():
    chance = np.random.default_rng(2)
    values, groups = chance.normal(5, 2, 60), chance.integers(0, 7, 60)
    found = group_statistics(torch.tensor(values, dtype=torch.float32), torch.from_numpy(groups))
    for group in range(7):
        own = groups == group
        part = values[own].astype(np.float32).astype(np.float64)
        assert found.difference[own].tolist() == pytest.approx(list(part - part.mean()), abs=1e-12)
        assert found.deviation[own].tolist() == pytest.approx([part.std()] * own.sum(), abs=1e-12)
