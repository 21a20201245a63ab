"""Every loss against an independent reference in float64."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from actors.algorithms import grpo, ppo
from actors.algorithms.losses import Clip, RolloutBatch, Targets, kl_k1, kl_k3, token_surrogate
from actors.algorithms.shaping import at_last_token
from actors.model.causal_lm import build
from actors.model.completion_logprobs import pad_completions
from actors.model.optim import BETAS, adamw, learning_rate_factor, muon_and_adamw
from actors.objectives.bradley_terry import CENTERING, BradleyTerryObjective, ranking_losses
from actors.objectives.dpo import DpoObjective, answer_logprobs, dpo_losses
from cluster.recipe.model import Model


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
    drawn = RolloutBatch(*(torch.ones(1, 1) for _ in range(2)), proximal - lag, tensor([0.0]), torch.tensor([0]))
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


class Headed(torch.nn.Module):
    """A model whose score of a row is its last token's number, over ten."""

    config = SimpleNamespace(hidden_size=1)

    def model(self, input_ids, use_cache, **_of_shared_rows):
        assert not use_cache
        return type("Output", (), {"last_hidden_state": input_ids[..., None].double()})()

    def score(self, states):
        return states / 10


def test_a_annotators_weight_multiplies_the_loss_of_their_rankings():
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


def test_learning_rate_warms_up_stays_and_falls():
    factors = [learning_rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[-1] == pytest.approx(1 / 20)
    assert all(later < sooner for sooner, later in itertools.pairwise(factors[80:]))


def test_cosine_falls_from_the_warm_up_on():
    factors = [learning_rate_factor(step, 100, 0.1, 0.2, "cosine") for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    # Loshchilov and Hutter 2017, eq. 5, from step 9, the last of the warm-up, to step 100, which is not done.
    assert factors[9:] == pytest.approx([(1 + math.cos(math.pi * (step - 9) / 91)) / 2 for step in range(9, 100)])
    assert 0 < factors[-1] < 0.001
    assert learning_rate_factor(0, 1, 0.0, 0.0, "cosine") == 1.0


def test_adamw_steps_equal_the_paper():
    generator = torch.Generator().manual_seed(0)
    matrix, vector = (torch.nn.Parameter(torch.randn(*shape, generator=generator).double()) for shape in ((3, 2), (2,)))
    optimizer = adamw([matrix, vector], learning_rate=0.01, weight_decay=0.1)
    # Loshchilov and Hutter 2019, algorithm 2, lines 6 to 12, with Adam's bias corrections.
    expected = {parameter: parameter.detach().numpy().copy() for parameter in (matrix, vector)}
    first, second = ({p: np.zeros(p.shape) for p in expected} for _ in range(2))
    for step in (1, 2):
        for p, decay in ((matrix, 0.1), (vector, 0.0)):
            p.grad = torch.randn(p.shape, generator=generator).double()
            gradient = p.grad.numpy()
            first[p] = BETAS[0] * first[p] + (1 - BETAS[0]) * gradient
            second[p] = BETAS[1] * second[p] + (1 - BETAS[1]) * gradient**2
            moments = first[p] / (1 - BETAS[0] ** step), second[p] / (1 - BETAS[1] ** step)
            expected[p] -= 0.01 * (moments[0] / (np.sqrt(moments[1]) + 1e-8) + decay * expected[p])
        optimizer.step()
        for p, value in expected.items():
            assert np.allclose(p.detach().numpy(), value, atol=1e-12)


@pytest.mark.parametrize("native", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_muon_step_equals_newton_schulz_written_out(
    native: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("actors.model.optim.native_precision", lambda _: native)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(*shape[::-1], bias=False)])})
    wrapped = torch.nn.ModuleDict({"model": model})
    weight = wrapped["model"]["layers"][0].weight
    before, gradient = weight.detach().clone(), torch.randn(shape)
    weight.grad = gradient.clone()
    muon, _ = muon_and_adamw(wrapped, learning_rate=0.01, weight_decay=0.1)
    muon.step()
    # First step of Nesterov momentum 0.95 from zero, then the quintic iteration of Jordan et al. 2024.
    step = (0.05 * gradient) * 0.95 + 0.05 * gradient
    dtype = torch.bfloat16 if native == "bfloat16" else torch.float64
    x = step.to(dtype) / step.to(dtype).norm()
    x = x.T if shape[0] > shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if shape[0] > shape[1] else x
    expected = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * math.sqrt(6) * x.float()
    assert torch.allclose(weight, expected, atol=2e-4 if native == "bfloat16" else 1e-6)
    assert not torch.allclose(weight, before, atol=1e-3)


@pytest.mark.parametrize("first", ["bfloat16", "float32"])
def test_muon_goes_on_from_the_state_of_either_precision(first: str, monkeypatch: pytest.MonkeyPatch):
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 6, bias=False)])})
    wrapped = torch.nn.ModuleDict({"model": model})
    weight = wrapped["model"]["layers"][0].weight
    weight.grad = torch.randn(6, 4)

    def made(native: str) -> torch.optim.Optimizer:
        monkeypatch.setattr("actors.model.optim.native_precision", lambda _: native)
        return muon_and_adamw(wrapped, learning_rate=0.01, weight_decay=0.1)[0]

    before, after = made(first), made("float32" if first == "bfloat16" else "bfloat16")
    before.step()
    # As the trainer's checkpoints do; making the state, PyTorch takes a step without gradients.
    set_optimizer_state_dict(wrapped, after, get_optimizer_state_dict(wrapped, before))
    momentum = before.state[weight]["momentum_buffer"]
    assert momentum.any()
    assert torch.equal(after.state[weight]["momentum_buffer"], momentum)


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


def test_dpo_reads_the_log_probability_of_answers_alone_and_starts_from_no_preference():
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
    objective = DpoObjective(padding=0, beta=0.1)
    batch = objective.collate(pa.Table.from_pylist([row | {"ref_logprobs": expected}] * 2))
    loss, figures = objective.loss(model, batch)
    assert objective.count(batch) == 2
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-5)
    batch = objective.collate(pa.Table.from_pylist([row | {"ref_logprobs": [expected[0] - 3.0, expected[1]]}]))
    loss, figures = objective.loss(model, batch)
    assert (loss.item(), figures["margins"]) == pytest.approx((math.log1p(math.exp(-0.3)), 0.3), abs=1e-5)
    assert figures["right_pairs"] == 1
