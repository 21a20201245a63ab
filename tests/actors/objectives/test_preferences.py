"""DPO, cDPO, IPO and KTO: losses and gradients against closed forms in float64, in any micro-batches, with adapters."""

import copy
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.model import lora
from actors.model.causal_lm import build
from actors.model.microbatch import DataParallelRank, accumulate, sum_over_workers
from actors.model.sharding.fsdp import WithLoss, full_tensor, shard
from actors.objectives.dpo import PairObjective, pair_losses
from actors.objectives.kto import KtoObjective, kto_losses
from actors.objectives.reference import Reference, answer_logprobs
from cluster.recipe.base import Lora
from cluster.recipe.model import Model

BETA = 0.3
SHAPE = Model(vocabulary=300, hidden=32, layers=2, heads=2, context=64)


def model(seed: int = 0):
    return build(SHAPE, seed, end_of_turn=4, padding=0).eval()


def moved(seed: int = 0, by: float = 0.05):
    """Makes the model of a seed and moves its weights, as some training would."""
    torch.manual_seed(9)
    policy = model(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return policy


def rows(count: int = 7) -> pa.Table:
    chance = np.random.default_rng(0)
    found = []
    for number in range(count):
        prompt, *answers = (chance.integers(5, 300, n).tolist() for n in chance.integers(2, 12, 3))
        found.append(
            {
                "input_ids": [*prompt, *answers[0], *prompt, *answers[1]],
                "lengths": [len(prompt) + len(one) for one in answers],
                "prompt_length": len(prompt),
                "good": 1 if number % 3 else -1,
                "weight": 0.5 + number / 6,
            }
        )
    return pa.Table.from_pylist(found)


def log_ratios(policy, reference, table: pa.Table) -> torch.Tensor:
    """Computes log π / π_ref of both answers of each row, one by one, in float64 from the logits. [N, 2]."""
    found = []
    for row in table.to_pylist():
        middle, start = row["lengths"][0], row["prompt_length"]
        for ids in (row["input_ids"][:middle], row["input_ids"][middle:]):
            values = []
            for one in (policy, reference):
                logits = one(torch.tensor([ids])).logits[0, start - 1 : -1].double().log_softmax(-1)
                values.append(logits.gather(1, torch.tensor(ids[start:])[:, None]).sum())
            found.append(values[0] - values[1].detach())
    return torch.stack(found).view(-1, 2)


def closed_form(name: str, ratios: torch.Tensor, table: pa.Table) -> torch.Tensor:
    """Computes the mean loss of the rows, as the papers write it."""
    weights, good = torch.tensor(table["weight"].to_pylist(), dtype=torch.float64), table["good"].to_pylist()
    h = ratios[:, 0] - ratios[:, 1]
    if name == "kto":
        point = max(0.0, ratios[:, 1].mean().item())
        signs = torch.tensor([1.0 if one > 0 else -1.0 for one in good], dtype=torch.float64)
        importance = torch.tensor([1.0 if one > 0 else 1.3 for one in good], dtype=torch.float64)
        values = 1 / (1 + torch.exp(-signs * BETA * (ratios[:, 0] - point)))
        losses = importance * (1 - values)
    elif name == "ipo":
        losses = (h - 1 / (2 * BETA)) ** 2
    else:
        right, epsilon = 1 / (1 + torch.exp(-BETA * h)), 0.1 if name == "cdpo" else 0.0
        losses = -(1 - epsilon) * torch.log(right) - epsilon * torch.log(1 - right)
    return (weights * losses).sum() / len(good)


def objective(name: str, reference: Reference):
    if name == "kto":
        return KtoObjective(0, reference, BETA, undesirable=1.3)
    return PairObjective(0, reference, BETA, "ipo" if name == "ipo" else "dpo", 0.1 if name == "cdpo" else 0.0)


def computed(name: str, policy, reference: Reference, table: pa.Table, micro: int, rank: int = 0, world: int = 1):
    """Loss and metrics of a worker, as the trainer computes them; its gradients are left in the policy.

    Of several workers, each has to call it.
    """
    own = objective(name, reference)
    worker = DataParallelRank(rank, world, micro, "float32", torch.device("cpu"))
    own.place(worker)
    both = shard(WithLoss(policy, own), world, worker.device).train()
    if name == "kto":
        table = own.with_reference_point(both, table, worker)
    return accumulate(both, own, table, table.num_rows, worker)


def of_worker(name: str, adapters: bool, rank: int = 0, world: int = 1):
    """Computes mean loss, metrics and gradients of the whole batch, as one of two workers or as one alone."""
    policy, reference = moved(), Reference(None if adapters else model())
    if adapters:
        lora.add(policy, Lora(rank=2), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter_name, parameter in policy.named_parameters():
                if parameter_name.endswith(lora.UP):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    found = computed(name, policy, reference, rows(), 2, rank, world)
    loss, figures = sum_over_workers(*found, DataParallelRank(rank, world, 2, "float32", torch.device("cpu")))
    gradients = {key: full_tensor(p.grad) for key, p in policy.named_parameters() if p.requires_grad}
    return loss, figures, gradients


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "kto"])
def test_losses_and_gradients_of_log_ratios_equal_the_closed_forms_in_float64(name: str):
    table, generator = rows(), torch.Generator().manual_seed(5)
    given = (torch.randn(7, 2, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    weights = torch.tensor(table["weight"].to_pylist(), dtype=torch.float64)
    if name == "kto":
        good = torch.tensor(table["good"].to_pylist())
        point = given[:, 1].detach().mean().clamp(min=0)
        importance = torch.where(good > 0, 1.0, torch.tensor(1.3, dtype=torch.float64))
        losses = importance * kto_losses(given[:, 0], point, good, BETA)
    else:
        losses = pair_losses(given, BETA, "ipo" if name == "ipo" else "dpo", 0.1 if name == "cdpo" else 0.0)
    mean = (weights * losses).sum() / 7
    expected = closed_form(name, given, table)
    assert mean.item() == pytest.approx(expected.item(), abs=1e-12)
    gradients = (torch.autograd.grad(one, given)[0] for one in (mean, expected))
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("micro", [1, 3, 64])
@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "kto"])
def test_loss_and_gradient_equal_the_papers_in_any_micro_batches(name: str, micro: int):
    table, policy, start = rows(), moved().double(), model().double()
    loss, figures = computed(name, policy, Reference(copy.deepcopy(start)), table, micro)
    other = moved().double()
    ratios = log_ratios(other, start, table)
    expected = closed_form(name, ratios, table)
    expected.backward()
    # The norms compute in 32 bits, whatever the model.
    assert loss == pytest.approx(expected.item(), rel=5e-6)
    found, wanted = (dict(one.named_parameters()) for one in (policy, other))
    largest = max(float(parameter.grad.abs().max()) for parameter in wanted.values())
    for parameter in wanted:
        assert torch.allclose(found[parameter].grad, wanted[parameter].grad, rtol=0, atol=5e-6 * largest), parameter
    ratios = ratios.detach()
    if name == "kto":
        assert figures["reference_points"] / 7 == pytest.approx(max(0.0, float(ratios[:, 1].mean())), abs=1e-5)
    else:
        margins = BETA * (ratios[:, 0] - ratios[:, 1])
        assert figures["margins"] == pytest.approx(float(margins.sum()), abs=1e-5)
        assert figures["right_pairs"] == int((margins > 0).sum())


def test_a_reference_point_below_0_counts_as_0():
    # The roles of policy and reference the other way round: the log-ratios of strange answers change their sign.
    table = rows()
    below, above = (
        computed("kto", one, Reference(other), table, 4)[1]["reference_points"]
        for one, other in ((model(), moved()), (moved(), model()))
    )
    ratios = log_ratios(moved(), model(), table)[:, 1].mean().item()
    assert abs(ratios) > 0.01
    assert sorted([below, above]) == [0.0, pytest.approx(7 * abs(ratios), abs=1e-4)]


def test_losses_equal_trls_formulas():
    # trl 0.2x, dpo_trainer.py (sigmoid with label_smoothing, ipo) and kto_trainer.py, on the same log-ratios.
    generator = torch.Generator().manual_seed(5)
    ratios = torch.randn(9, 2, generator=generator) * 4
    logits = ratios[:, 0] - ratios[:, 1]
    smoothed = (
        -torch.nn.functional.logsigmoid(BETA * logits) * 0.9 - torch.nn.functional.logsigmoid(-BETA * logits) * 0.1
    )
    assert torch.allclose(pair_losses(ratios, BETA, "dpo", 0.1), smoothed, rtol=0, atol=1e-6)
    assert torch.equal(pair_losses(ratios, BETA, "ipo"), (logits - 1 / (2 * BETA)) ** 2)
    point = torch.tensor([0.7])
    chosen, rejected = (kto_losses(ratios[:, i], point, torch.full((9,), sign), BETA) for i, sign in ((0, 1), (1, -1)))
    assert torch.allclose(chosen, 1 - torch.sigmoid(BETA * (ratios[:, 0] - point)), rtol=0, atol=1e-6)
    assert torch.allclose(rejected, 1 - torch.sigmoid(BETA * (point - ratios[:, 1])), rtol=0, atol=1e-6)


def test_cdpo_is_least_where_the_margin_says_how_sure_the_label_is():
    # Mitchell 2023: the optimum is σ(margin) = 1 - ε; without smoothing there is none.
    margins = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    losses = pair_losses(torch.stack([margins / BETA, torch.zeros_like(margins)], 1), BETA, "dpo", 0.1)
    assert margins[losses.argmin()].item() == pytest.approx(math.log(0.9 / 0.1), abs=0.01)
    assert pair_losses(torch.tensor([[1 / (2 * BETA), 0.0]]), BETA, "ipo").item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_margins_are_0_before_the_first_step_in_any_precision(precision: str, recompute: bool, adapters: bool):
    policy = model()
    reference = Reference(None if adapters else model())
    if adapters:
        lora.add(policy, Lora(rank=2), seed=1)
    if recompute:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own = PairObjective(0, reference, 0.1)
    worker = DataParallelRank(0, 1, 2, precision, torch.device("cpu"))
    own.place(worker)
    table = rows().set_column(4, "weight", pa.array([1.0] * 7))
    loss, figures = accumulate(WithLoss(policy, own).train(), own, table, 7, worker)
    assert figures["margins"] == 0.0
    assert loss == pytest.approx(math.log(2), abs=1e-7)
    trained = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert all(lora.is_adapter(name) == adapters for name in trained)
    assert sum(float(parameter.grad.abs().sum()) for parameter in policy.parameters() if parameter.grad is not None) > 0
    if not adapters:
        assert all(parameter.grad is None for parameter in reference.model.parameters())


def test_the_reference_of_adapters_is_the_model_without_them():
    policy = model()
    lora.add(policy, Lora(rank=2), seed=1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith(lora.UP):
                parameter.normal_(std=0.3)
    table = rows()
    loss, _ = computed("dpo", policy, Reference(None), table, 3)
    with torch.no_grad():
        merged = model()
        merged.load_state_dict(lora.merged_weights(policy, policy.state_dict()))
        ratios = log_ratios(merged, model(), table)
    assert abs(float((ratios[:, 0] - ratios[:, 1]).sum())) > 0.1
    assert loss == pytest.approx(closed_form("dpo", ratios, table).item(), abs=1e-5)


def test_log_probabilities_are_of_the_answers_alone():
    policy, prompt, answers = model().double(), [5, 9, 3], [[7, 8, 2], [11, 2]]
    ids = torch.tensor([[*prompt, *answers[0]], [*prompt, *answers[1], 0]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]).bool()
    with torch.no_grad():
        found = answer_logprobs(policy, ids, mask, torch.tensor([0, 0]))
        for value, answer in zip(found.tolist(), answers, strict=True):
            logits = policy(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            expected = sum(float(logits[2 + i, token]) for i, token in enumerate(answer))
            assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "kto"])
def test_each_loss_trains_a_tiny_model_towards_its_goal(name: str):
    good, bad, end = 50, 70, 4
    chance = np.random.default_rng(1)
    prompts = [[2, *chance.integers(100, 300, 4).tolist(), 3] for _ in range(24)]
    table = []
    for number, prompt in enumerate(prompts):
        signs = [1, -1] if name == "kto" else [0]
        for sign in signs:
            chosen = [*prompt, good if sign >= 0 else bad, end]
            # KTO's second answer is one to another prompt, which begins with either token.
            second = [*prompt, bad if name != "kto" or number % 2 else good, end]
            table.append({"input_ids": chosen + second, "lengths": [8, 8], "prompt_length": 6, "good": sign})
    rows_of = pa.Table.from_pylist([{**row, "weight": 1.0} for row in table])
    policy, reference = model(), model()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(12):
        computed(name, policy, Reference(reference), rows_of, 64)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        new = [[2, *chance.integers(100, 300, 4).tolist(), 3] for _ in range(40)]
        before, after = (one(torch.tensor(new)).logits[:, -1].log_softmax(-1) for one in (reference, policy))
    gain = (after - before)[:, [good, bad]]
    assert bool((gain[:, 0] > gain[:, 1] + 0.5).all())
