"""The losses of the reward model against independent references in float64."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from actors.model.causal_lm import build
from actors.objectives.bradley_terry import CENTERING, BradleyTerryObjective, ranking_losses, unpaired_losses
from cluster.recipe.model import Model


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ranking_loss_equals_the_bradley_terry_likelihood_with_ties_as_halves():
    rewards, ranks = [0.7, -0.2, 1.3, 0.1], [1, 2, 2, 3]
    expected = []
    for i, j in itertools.combinations(range(4), 2):
        win = 1 / (1 + math.exp(-(rewards[i] - rewards[j])))
        share = 1.0 if ranks[i] < ranks[j] else 0.0 if ranks[i] > ranks[j] else 0.5
        expected.append(-share * math.log(win) - (1 - share) * math.log(1 - win))
    assert torch.allclose(ranking_losses(tensor(rewards), torch.tensor(ranks)), tensor(expected), atol=1e-12)


def test_with_two_answers_the_loss_is_that_of_trls_reward_trainer():
    # TRL documents it as -log sigmoid(r_chosen - r_rejected), here in float64.
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randn(9, 2, generator=generator) * 2
    found = torch.cat([ranking_losses(pair, torch.tensor([1, 2])) for pair in pairs])
    swapped = torch.cat([ranking_losses(pair.flip(0), torch.tensor([2, 1])) for pair in pairs])
    gap = (pairs[:, 0].double() - pairs[:, 1].double()).numpy()
    assert np.allclose(found.numpy(), np.log1p(np.exp(-gap)), rtol=0, atol=1e-6)
    assert np.allclose(swapped.numpy(), found.numpy(), rtol=0, atol=1e-6)


def test_the_unpaired_loss_is_ktos_with_its_reference_point_at_zero():
    # Ethayarajh et al. 2024, eq. 7 and 8: λ - v, where v = λ σ(β (r - z0)) of a good answer, λ σ(β (z0 - r)) of a bad.
    rewards, good = [0.7, -2.5, 0.0, 30.0, -30.0], [1, -1, 1, -1, 1]
    expected = [1 - 1 / (1 + math.exp(-sign * reward)) for reward, sign in zip(rewards, good, strict=True)]
    given = tensor(rewards).requires_grad_()
    found = unpaired_losses(given, torch.tensor(good))
    assert found.tolist() == pytest.approx(expected, abs=1e-15)
    found.sum().backward()
    # dσ(-s r)/dr = -s σ(1 - σ).
    slopes = [-sign * loss * (1 - loss) for sign, loss in zip(good, expected, strict=True)]
    assert given.grad.tolist() == pytest.approx(slopes, abs=1e-12)


class Headed(torch.nn.Module):
    """A model whose score of a row is its last token's number, over ten."""

    config = SimpleNamespace(hidden_size=1)
    base_model_prefix = "model"

    def model(self, input_ids, use_cache, **_of_shared_rows):
        assert not use_cache
        return type("Output", (), {"last_hidden_state": input_ids[..., None].double()})()

    def score(self, states):
        return states / 10


def test_an_annotators_weight_multiplies_the_loss_of_their_rankings():
    rows = [
        {"input_ids": [1, 7, 1, 3], "lengths": [2, 2], "ranks": [1, 2], "weight": 1.5},
        {"input_ids": [2, 2, 2, 9, 4], "lengths": [2, 1, 2], "ranks": [2, 1, 1], "weight": 0.5},
    ]
    objective = BradleyTerryObjective(padding=0)
    total, figures = objective.loss(Headed(), objective.collate(pa.Table.from_pylist(rows)))

    def loss(rewards, ranks):
        pairs = [(i, j) for i in range(len(rewards)) for j in range(i)]
        gaps = [(rewards[i] - rewards[j]) for i, j in pairs]
        wins = [1.0 if ranks[i] < ranks[j] else 0.0 if ranks[i] > ranks[j] else 0.5 for i, j in pairs]
        bits = [
            -win * math.log(1 / (1 + math.exp(-gap))) - (1 - win) * math.log(1 - 1 / (1 + math.exp(-gap)))
            for gap, win in zip(gaps, wins, strict=True)
        ]
        return sum(bits) / len(bits) + CENTERING * sum(reward**2 for reward in rewards) / len(rewards)

    expected = 1.5 * loss([0.7, 0.3], [1, 2]) + 0.5 * loss([0.2, 0.2, 0.4], [2, 1, 1])
    assert total.item() == pytest.approx(expected, abs=1e-6)
    # Unpaired answers among rankings.
    thumbs = [{"input_ids": [1, 4], "lengths": [2], "ranks": [1], "weight": 2.0}] * 2
    mixed = pa.Table.from_pylist([*rows, *thumbs]).append_column("good", pa.array([0, 0, 1, -1], pa.int8()))
    with_thumbs, counted = objective.loss(Headed(), objective.collate(mixed))
    unpaired = 2 * (1 / (1 + math.exp(0.4)) + 1 / (1 + math.exp(-0.4)) + 2 * CENTERING * 0.4**2)
    assert with_thumbs.item() == pytest.approx(expected + unpaired, abs=1e-6)
    assert counted == figures
    assert objective.count(objective.collate(pa.Table.from_pylist(rows))) == 2
    assert figures == {"right_pairs": 2, "ordered_pairs": 3}


def test_a_counterexample_is_compared_with_the_answer_that_it_was_made_from_alone():
    row = {"input_ids": [7, 3, 9, 1], "lengths": [1] * 4, "ranks": [1, 2, 3, 3], "weight": 1.0}
    objective = BradleyTerryObjective(padding=0)
    rows = pa.Table.from_pylist([{**row, "made_from": [-1, -1, 0, 0]}])
    total, figures = objective.loss(Headed(), objective.collate(rows))

    def loss(better, worse):
        return math.log(1 + math.exp(worse - better))

    centering = CENTERING * (0.7**2 + 0.3**2 + 0.9**2 + 0.1**2) / 4
    assert total.item() == pytest.approx(loss(0.7, 0.3) + (loss(0.7, 0.9) + loss(0.7, 0.1)) / 2 + centering, abs=1e-6)
    # Only pairs of answers that annotators ranked count.
    assert figures == {"right_pairs": 1, "ordered_pairs": 1}


def test_the_loss_and_its_gradients_are_those_of_answers_alone():
    rankings = [
        ([2, 10, 11, 12, 3], [[20, 21, 4], [22, 4], [20, 23, 24, 25, 4], [4]], [2, 1, 3, 3]),
        ([2, 13, 3], [[26, 4], [26, 4], [27, 28, 4]], [1, 2, 2]),
    ]
    shape = Model(vocabulary=300, hidden=32, layers=3, heads=4, context=64)
    settings = LlamaConfig(**{**build(shape, 0, end_of_turn=4, padding=0).config.to_dict(), "num_labels": 1})
    model = LlamaForSequenceClassification(settings).double()
    rows = [
        {
            "input_ids": [token for answer in answers for token in prompt + answer],
            "lengths": [len(prompt + answer) for answer in answers],
            "ranks": ranks,
            "weight": 1.0,
        }
        for prompt, answers, ranks in rankings
    ]
    objective, seen = BradleyTerryObjective(padding=0), []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    loss, _ = objective.loss(model, objective.collate(pa.Table.from_pylist(rows)))
    hook.remove()
    # The prompt once, then 3, 2, 5 and 1 tokens.
    assert seen == [(2, 16)]
    alone = torch.zeros(())
    for prompt, answers, ranks in rankings:
        states = [model.model(input_ids=torch.tensor([prompt + answer])).last_hidden_state[0, -1] for answer in answers]
        rewards = model.score(torch.stack(states)).squeeze(-1)
        alone = alone + ranking_losses(rewards, torch.tensor(ranks)).mean() + CENTERING * rewards.square().mean()
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters), strict=True)
    for one, other in pairs:
        # The norms compute in 32 bits, whatever the model.
        assert torch.allclose(one, other, atol=1e-6 * float(other.abs().max()))
