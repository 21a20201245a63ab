"""The losses of the reward model and of DPO against independent references in float64."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from actors.model.causal_lm import build
from actors.model.completion_logprobs import pad_completions
from actors.model.fsdp import WithLoss
from actors.model.microbatch import DataParallelRank, accumulate
from actors.objectives.bradley_terry import CENTERING, BradleyTerryObjective, ranking_losses, unpaired_losses
from actors.objectives.dpo import DpoObjective, answer_logprobs, dpo_losses
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


def test_dpo_loss_and_gradient_equal_the_closed_form_and_trls_on_the_same_batch():
    generator = torch.Generator().manual_seed(5)
    policy, reference = (-20 * torch.rand(9, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    beta = 0.3
    losses, margins = dpo_losses(policy.requires_grad_(), reference, beta)
    # Rafailov et al. 2023, eq. 7, and the gradient below it: -beta σ(-margin) for the chosen answer.
    closed = beta * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1])).detach()
    assert torch.allclose(margins, closed, atol=1e-12)
    assert torch.allclose(losses, torch.log1p(torch.exp(-closed)), atol=1e-12)
    losses.sum().backward()
    push = beta / (1 + torch.exp(closed))
    assert torch.allclose(policy.grad, torch.stack([-push, push], 1), atol=1e-12)
    # TRL's DPOTrainer, loss_type "sigmoid", label_smoothing 0, in float32 as it computes.
    single, other = policy.detach().float(), reference.float()
    logits = (single[:, 0] - single[:, 1]) - (other[:, 0] - other[:, 1])
    trl = -torch.nn.functional.logsigmoid(beta * logits)
    assert torch.allclose(dpo_losses(single, other, beta)[0], trl, rtol=0, atol=1e-6)


def test_dpo_sums_log_probabilities_of_answers_alone_and_starts_without_a_preference():
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).double().eval()
    prompt, answers = [5, 9, 3], [[7, 8, 2], [11, 2]]
    expected = []
    for answer in answers:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    ids, answer = pad_completions([prompt + one for one in answers], [len(prompt)] * 2, padding=0)
    assert answer.sum(1).tolist() == [3, 2]
    with torch.no_grad():
        assert answer_logprobs(model, ids, answer).tolist() == pytest.approx(expected, abs=1e-5)
    row = {"input_ids": [*prompt, *answers[0], *prompt, *answers[1]], "lengths": [6, 5], "prompt_length": 3}
    objective = DpoObjective(padding=0, beta=0.1, reference=copy.deepcopy(model))
    batch = objective.collate(pa.Table.from_pylist([row] * 2))
    loss, figures = objective.loss(model, batch)
    assert objective.count(batch) == 2
    assert (loss.item(), figures["margins"]) == (pytest.approx(2 * math.log(2), abs=1e-7), 0.0)
    # A policy that has moved, against the reference's own log-probabilities.
    with torch.no_grad():
        model.lm_head.weight.add_(0.1 * torch.randn(model.lm_head.weight.shape, dtype=torch.float64))
        moved = answer_logprobs(model, ids, answer).tolist()
    loss, figures = objective.loss(model, objective.collate(pa.Table.from_pylist([row])))
    margin = 0.1 * ((moved[0] - expected[0]) - (moved[1] - expected[1]))
    assert abs(margin) > 0.01
    assert (loss.item(), figures["margins"]) == pytest.approx((math.log1p(math.exp(-margin)), margin), abs=1e-5)
    assert figures["right_pairs"] == (margin > 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_margins_are_0_before_the_first_step_in_any_precision(precision: str, recompute: bool):
    shape = Model(vocabulary=300, hidden=64, layers=3, heads=4, context=64)
    model = build(shape, 0, end_of_turn=4, padding=0)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    chance = np.random.default_rng(0)
    rows = []
    for _ in range(6):
        prompt, *answers = (chance.integers(5, 300, n).tolist() for n in chance.integers(2, 20, 3))
        ids = [*prompt, *answers[0], *prompt, *answers[1]]
        lengths = [len(prompt) + len(one) for one in answers]
        rows.append({"input_ids": ids, "lengths": lengths, "prompt_length": len(prompt)})
    objective = DpoObjective(0, 0.1, build(shape, 0, end_of_turn=4, padding=0))
    worker = DataParallelRank(0, 1, 2, precision, torch.device("cpu"))
    objective.place(worker)
    both = WithLoss(model, objective).train()
    loss, figures = accumulate(both, objective, pa.Table.from_pylist(rows), 6, worker)
    assert figures["margins"] == 0.0
    assert loss == pytest.approx(math.log(2), abs=1e-7)
    assert all(parameter.grad is None for parameter in objective.reference.parameters())
    assert model.lm_head.weight.grad.abs().sum() > 0
