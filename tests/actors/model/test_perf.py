"""The operations of a token, a machine's rate and precision, and when compiling pays."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from actors.model.causal_lm import build
from actors.model.perf import (
    compile_layers,
    compiling_pays,
    flops_per_token,
    native_precision,
    peak_flops,
    stated_flops,
)
from cluster.errors import UserError
from cluster.recipe.model import Model

SMALL = Model(vocabulary=300, hidden=64, layers=2, heads=2, context=32)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", 3.12e14),
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", 7.56e14),
        ("NVIDIA L4", 1.21e14),
        ("NVIDIA L40S", 3.62e14),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name: str, rate: float | None):
    assert stated_flops(name) == rate


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = build(SMALL, 0, end_of_turn=4, padding=0)
    with pytest.raises(UserError, match=r"compile_layers needs a C\+\+ compiler"):
        compile_layers(model)


def test_the_operations_of_a_token_are_counted_by_hand():
    model = build(SMALL, 0, end_of_turn=4, padding=0)
    intermediate = model.config.intermediate_size
    layer = 4 * 64 * 64 + 3 * 64 * intermediate + 2 * 64
    # The tied embedding multiplies once, as the output head; then attention's scores and sums, forward and backward.
    assert flops_per_token(model, 10) == 6 * (300 * 64 + 2 * layer + 64) + 12 * 2 * 64 * 10
    for parameter in model.model.layers.parameters():
        parameter.requires_grad_(False)
    assert flops_per_token(model, 10) == 6 * (300 * 64 + 64) + 4 * 2 * layer + 12 * 2 * 64 * 10


def test_a_mixture_of_experts_counts_the_active_experts_of_a_token():
    config = MixtralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    layer = 4 * 16 * 16 + 8 * 16 + 2 * 16 + 2 * 3 * 16 * 24
    assert flops_per_token(model, 10) == pytest.approx(6 * (300 * 16 + 2 * layer + 16) + 12 * 2 * 16 * 10)


@pytest.mark.slow
def test_the_precision_that_the_machine_has_instructions_for_is_the_faster_one() -> None:
    cpu = torch.device("cpu")
    rates = {precision: peak_flops(cpu, precision) for precision in ("bfloat16", "float32")}
    assert native_precision(cpu) == max(rates, key=lambda precision: rates[precision])


def test_compiling_pays_where_there_is_much_to_train() -> None:
    model = build(SMALL, 0, end_of_turn=4, padding=0)
    operations = flops_per_token(model, SMALL.context)
    few, many = (int(factor * 1e14 / operations) for factor in (0.9, 1.1))
    cpu = torch.device("cpu")
    assert not compiling_pays(model, few, SMALL.context, cpu)
    assert compiling_pays(model, many, SMALL.context, cpu) == (shutil.which("g++") is not None)
