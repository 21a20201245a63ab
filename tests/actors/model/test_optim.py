"""Optimizers and schedules against references written out in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from transformers import AutoModelForCausalLM, GptOssConfig

from actors.model.causal_lm import build
from actors.model.optim import (
    BETAS,
    AdamSettings,
    MuonInFloat32,
    MuonOfExperts,
    adamw,
    learning_rate_factor,
    make_optimizers,
    muon_and_adamw,
)
from cluster.recipe.base import Decayed
from cluster.recipe.model import Model


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_learning_rate_warms_up_stays_and_falls():
    factors = [learning_rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[-1] == pytest.approx(1 / 20)
    assert all(later < sooner for sooner, later in itertools.pairwise(factors[80:]))


def test_two_runs_have_the_rates_of_one_that_decays_on_another_mixture():
    # infra/docs/training.md: decay_share 0, then a run that starts from its base with warmup_share 0, decay_share 1.
    whole = [learning_rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    first = [learning_rate_factor(step, 80, 0.125, 0.0) for step in range(80)]
    second = [learning_rate_factor(step, 20, 0.0, 1.0) for step in range(20)]
    assert first + second == pytest.approx(whole)


def test_cosine_falls_from_the_warm_up_on():
    factors = [learning_rate_factor(step, 100, 0.1, 0.2, "cosine") for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    # Loshchilov and Hutter 2017, eq. 5, from step 9, the last of the warm-up, to step 100, which is not done.
    assert factors[9:] == pytest.approx([(1 + math.cos(math.pi * (step - 9) / 91)) / 2 for step in range(9, 100)])
    assert 0 < factors[-1] < 0.001
    assert learning_rate_factor(0, 1, 0.0, 0.0, "cosine") == 1.0


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_the_rate_falls_to_the_least_that_is_asked_for(schedule: str):
    to_zero, to_tenth = (
        [learning_rate_factor(step, 100, 0.1, 0.2, schedule, minimum) for step in range(100)] for minimum in (0.0, 0.1)
    )
    assert to_tenth[:10] == to_zero[:10]
    assert to_tenth[10:] == pytest.approx([0.1 + 0.9 * factor for factor in to_zero[10:]])


@pytest.mark.parametrize(
    ("decayed", "expected"),
    [
        ("matrices", {"embed_tokens.weight", "down_proj.weight"}),
        ("layers", {"down_proj.weight"}),
        ("all", {"embed_tokens.weight", "down_proj.weight", "input_layernorm.weight"}),
    ],
)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_recipe_chooses_the_weights_that_decay(kind: str, decayed: Decayed, expected: set[str]):
    shape = Model(vocabulary=300, hidden=64, layers=1, heads=2, context=32)
    model = build(shape, 0, end_of_turn=4, padding=0)
    found = make_optimizers(model, kind, 0.1, 0.2, AdamSettings((0.8, 0.9), 1e-6, decayed))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group for one in found for group in one.param_groups]
    decaying = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
    kept = {"embed_tokens.weight", "down_proj.weight", "input_layernorm.weight"}
    assert {name for name in kept if any(other.endswith(name) for other in decaying)} == expected
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-6 for group in found[-1].param_groups)


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
    # The trainer's checkpoints load a state so; to make one, PyTorch takes a step without gradients.
    set_optimizer_state_dict(wrapped, after, get_optimizer_state_dict(wrapped, before))
    momentum = before.state[weight]["momentum_buffer"]
    assert momentum.any()
    assert torch.equal(after.state[weight]["momentum_buffer"], momentum)


def test_each_expert_of_a_stack_is_a_matrix_of_its_own():
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(3, 4, 6, generator=generator), torch.randn(2, 3, 4, 6, generator=generator)
    stack = torch.nn.Parameter(start.clone())
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    settings = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    together, each = MuonOfExperts([stack], **settings), MuonInFloat32(alone, **settings)
    for gradient in gradients:
        stack.grad = gradient.clone()
        for matrix, own in zip(alone, gradient, strict=True):
            matrix.grad = own.clone()
        together.step()
        each.step()
    torch.testing.assert_close(stack.detach(), torch.stack([matrix.detach() for matrix in alone]))


def test_muon_takes_experts_and_leaves_their_biases_to_adamw():
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    config = GptOssConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2
    )
    model = AutoModelForCausalLM.from_config(config)
    kinds = {
        name: type(optimizer)
        for optimizer in muon_and_adamw(model, 0.1, 0.1)
        for group in optimizer.param_groups
        for taken in group["params"]
        for name, parameter in model.named_parameters()
        if parameter is taken
    }
    assert len(kinds) == len(list(model.named_parameters()))
    assert kinds["model.layers.0.mlp.experts.gate_up_proj"] is MuonOfExperts
    assert kinds["model.layers.0.mlp.experts.gate_up_proj_bias"] is torch.optim.AdamW
    assert issubclass(kinds["model.layers.0.self_attn.q_proj.weight"], torch.optim.Muon)
    # The state of Muon for experts is saved and loaded like any other.
    model(input_ids=torch.arange(8).unsqueeze(0), labels=torch.arange(8).unsqueeze(0)).loss.backward()
    optimizers = muon_and_adamw(model, 0.1, 0.1)
    for optimizer in optimizers:
        optimizer.step()
    state = get_optimizer_state_dict(model, optimizers)
    set_optimizer_state_dict(model, muon_and_adamw(model, 0.1, 0.1), state)
