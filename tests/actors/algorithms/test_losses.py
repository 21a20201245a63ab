"""The parts of the algorithms against independent references in float64."""

import math

import numpy as np
import pytest
import torch

from actors.algorithms import grpo, ppo
from actors.algorithms.divergence import kl_k1, kl_k3
from actors.algorithms.losses import Clip, RolloutBatch, Targets, token_surrogate
from actors.algorithms.shaping import at_last_token


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_group_advantages_are_standard_scores_within_a_prompt():
    rewards, groups = tensor([1.0, 2.0, 4.0, 5.0, 5.0, 8.0]), torch.tensor([7, 7, 7, 3, 3, 3])
    expected = []
    for part in (np.array([1.0, 2.0, 4.0]), np.array([5.0, 5.0, 8.0])):
        expected += list((part - part.mean()) / (part.std() + grpo.EPSILON))
    assert torch.allclose(grpo.standard_scores(rewards, groups), tensor(expected), atol=1e-12)


def test_equal_rewards_teach_nothing():
    assert grpo.standard_scores(tensor([3.0, 3.0]), torch.tensor([0, 0])).tolist() == [0.0, 0.0]


def test_generalized_advantages_equal_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    answer = torch.zeros(3, 7, dtype=torch.bool)
    spans = [(1, 6), (2, 7), (3, 4)]
    for row, (start, end) in enumerate(spans):
        answer[row, start:end] = True
    discount, decay = 0.9, 0.8
    found = ppo.generalized_advantages(rewards, values, answer, discount, decay)
    for row, (start, end) in enumerate(spans):
        following = [*values[row, start + 1 : end].tolist(), 0.0]
        deltas = [rewards[row, start + i] + discount * v - values[row, start + i] for i, v in enumerate(following)]
        for i in range(len(deltas)):
            closed = sum((discount * decay) ** k * delta for k, delta in enumerate(deltas[i:]))
            assert found[row, start + i].item() == pytest.approx(float(closed), abs=1e-12)
        assert found[row, :start].eq(0).all()
        assert found[row, end:].eq(0).all()


def test_generalized_advantages_pass_over_what_was_not_drawn():
    answer = torch.tensor([[False, True, True, False, False, True, False]])
    rewards, values = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = ppo.generalized_advantages(rewards, values, answer)
    alone = ppo.generalized_advantages(rewards[answer][None], values[answer][None], torch.ones(1, 3, dtype=torch.bool))
    assert torch.allclose(whole[answer], alone[0])
    assert whole[~answer].eq(0).all()


def test_reward_is_paid_at_the_last_token():
    answer = torch.tensor([[False, True, True, False], [False, True, False, False], [False, False, True, True]])
    rewards = at_last_token(tensor([2.0, -1.0, 0.5]), answer)
    assert rewards.tolist() == [[0, 0, 2.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 0.5]]


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("log_ratio", [-0.5, -0.05, 0.05, 0.5])
@pytest.mark.parametrize("lag", [-0.3, 0.0, 3.0])
def test_surrogate_and_its_gradient_by_hand(advantage: float, log_ratio: float, lag: float):
    proximal = tensor([[-2.0]])
    logprobs = (proximal + log_ratio).requires_grad_()
    ones = torch.ones(1, 1, dtype=torch.bool)
    drawn = RolloutBatch(ones.long(), ones, proximal - lag, tensor([0.0]), torch.tensor([0]), ones)
    targets = Targets(tensor([[advantage]]), proximal, proximal)
    loss, clipped = token_surrogate(drawn, targets, logprobs, Clip(0.2, 0.2))
    ratio, weight = math.exp(log_ratio), min(math.exp(lag), 2.0)
    inside = min(max(ratio, 0.8), 1.2)
    assert loss.item() == pytest.approx(-weight * min(ratio * advantage, inside * advantage), abs=1e-12)
    pessimistic = inside * advantage < ratio * advantage
    assert bool(clipped) == pessimistic
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert gradient.item() == pytest.approx(0.0 if pessimistic else -weight * ratio * advantage, abs=1e-12)


def test_divergence_estimators_are_unbiased():
    policy, reference = tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.2, 0.6])
    exact = float((policy * (policy / reference).log()).sum())
    for estimator in (kl_k1, kl_k3):
        assert float((policy * estimator(policy.log(), reference.log())).sum()) == pytest.approx(exact, abs=1e-12)
    assert kl_k3(policy.log(), reference.log()).ge(0).all()


def test_value_loss_takes_the_worse_of_clipped_and_free():
    targets = Targets(*(torch.zeros(1, 2) for _ in range(3)), values=tensor([[1.0, 1.0]]), returns=tensor([[2.0, 1.0]]))
    losses = ppo.value_losses(tensor([[1.9, 1.9]]), targets, Clip(0.2, 0.2))
    assert torch.allclose(losses, tensor([[0.5 * 0.8**2, 0.5 * 0.9**2]]))


@pytest.mark.parametrize("value", [0.5, 0.9, 1.1, 1.9, 2.5])
@pytest.mark.parametrize("wanted", [0.0, 1.05, 2.0])
def test_value_loss_and_its_gradient_by_hand(value: float, wanted: float):
    # Ouyang et al. 2022 after Schulman's code: ½ max((V - R)², (V_old + clip(V - V_old, ±ε) - R)²), with V_old = 1.
    new = tensor([[value]]).requires_grad_()
    targets = Targets(*(torch.zeros(1, 1) for _ in range(3)), values=tensor([[1.0]]), returns=tensor([[wanted]]))
    loss = ppo.value_losses(new, targets, Clip(0.2, 0.2))
    near = min(max(value, 0.8), 1.2)
    free = (value - wanted) ** 2 >= (near - wanted) ** 2
    assert loss.item() == pytest.approx(0.5 * max((value - wanted) ** 2, (near - wanted) ** 2), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    assert gradient.item() == pytest.approx(value - wanted if free or near == value else 0.0, abs=1e-12)
