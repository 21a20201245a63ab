"""The auxiliary loss of mixtures of experts, against transformers' own loss and the formula of Switch Transformers."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig, MixtralConfig, OlmoeConfig, Qwen3MoeConfig

from actors.model.expert_balance import auxiliary_loss, is_balanced, unused_auxiliary_loss
from actors.model.microbatch import DataParallelRank, accumulate, evaluate
from actors.model.sharding.fsdp import WithLoss, full_tensor, shard
from actors.objectives.lm import AUXILIARY_LOSS, LanguageObjective
from tests.actors.model.test_lora import MIXTURES, SMALL
from tests.actors.model.test_microbatch import batch

CPU = torch.device("cpu")
SHAPE = {**SMALL, "vocab_size": 300, "intermediate_size": 32, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3}
KINDS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=16, head_dim=16),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=4),
}


def model_of(kind: str) -> Any:
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(deepcopy(KINDS[kind]))


def single_documents(seed: int = 5) -> Any:
    """Returns rows of one document and padding, which transformers computes without packing."""
    rows = batch(seed)
    ones = [[0 if document >= 0 else -1 for document in row] for row in rows["document_ids"].to_pylist()]
    return rows.set_column(rows.column_names.index("document_ids"), "document_ids", [ones])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: full_tensor(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def of_transformers(model: Any, rows: Any) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Returns transformers' loss with `output_router_logits`, the auxiliary loss in it, and the gradients."""
    found = LanguageObjective().collate(rows)
    labels = torch.where(found.loss_mask, found.input_ids, -100)
    real = (found.document_ids >= 0).long()
    model.train()
    output = model(input_ids=found.input_ids, attention_mask=real, labels=labels, output_router_logits=True)
    output.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    return float(output.loss.detach()), float(output.aux_loss.detach()), expected


def ours(model: Any, rows: Any, micro_batch_rows: int = 100) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Returns the mean loss, the mean auxiliary loss and the gradients of a step."""
    objective = LanguageObjective()
    total = objective.count(objective.collate(rows))
    worker = DataParallelRank(0, 1, micro_batch_rows, "float32", CPU)
    loss, metrics = accumulate(WithLoss(model, objective).train(), objective, rows, total, worker)
    return loss, metrics[AUXILIARY_LOSS] / total, gradients(model)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers_with_router_logits(kind: str):
    model, rows = model_of(kind), single_documents()
    loss, auxiliary, expected = of_transformers(model, rows)
    found, own, slopes = ours(model, rows)
    assert own == pytest.approx(auxiliary, rel=1e-5)
    # The step's loss is the cross-entropy alone; the coefficient stands in the model's configuration.
    assert found + 0.3 * own == pytest.approx(loss, rel=1e-5)
    assert slopes.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            slopes[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_router_learns_from_the_auxiliary_loss():
    model, rows = model_of("mixtral"), single_documents()
    _, _, balanced = ours(model, rows)
    model.zero_grad()
    model.config.router_aux_loss_coef = 0.0
    objective = LanguageObjective()
    total = objective.count(objective.collate(rows))
    worker = DataParallelRank(0, 1, 100, "float32", CPU)
    _, metrics = accumulate(WithLoss(model, objective).train(), objective, rows, total, worker)
    assert metrics == {}
    router = "model.layers.1.mlp.gate.weight"
    assert float((balanced[router] - gradients(model)[router]).abs().max()) > 1e-3


def test_the_auxiliary_loss_is_the_formula_over_tokens_that_are_no_padding():
    model = model_of("mixtral")
    chance = np.random.default_rng(3)
    logits = chance.normal(size=(2, 10, 4))
    real = np.array([1, 1, 1, 1, 0, 1, 1, 1, 0, 0], bool)
    shares, probabilities = np.zeros(4), np.zeros(4)
    for layer in logits:
        for token in layer[real]:
            odds = np.exp(token) / np.exp(token).sum()
            probabilities += odds / (2 * real.sum())
            shares[np.argsort(odds)[-2:]] += 1 / (2 * real.sum())
    found = auxiliary_loss(model, tuple(torch.tensor(logits)), torch.tensor(real).view(2, 5))
    assert float(found) == pytest.approx(4 * float(shares @ probabilities), rel=1e-6)


def test_micro_batches_weigh_as_their_targets_in_the_auxiliary_loss():
    model, rows = model_of("olmoe"), batch()
    loss, whole, _ = ours(model, rows)
    model.zero_grad()
    again, mean, _ = ours(model, rows, micro_batch_rows=2)
    assert again == pytest.approx(loss, rel=1e-5), "the cross-entropy does not depend on the split"
    assert 1.5 < whole < 4
    assert mean == pytest.approx(whole, rel=0.2)


def test_held_out_losses_leave_the_auxiliary_loss_out():
    model, rows, objective = model_of("mixtral"), single_documents(), LanguageObjective()
    loss, _, _ = ours(model, rows)
    found = evaluate(WithLoss(model, objective), objective, [rows], DataParallelRank(0, 1, 2, "float32", CPU))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert AUXILIARY_LOSS not in found


def test_recomputed_activations_change_nothing():
    model, rows = model_of("qwen3_moe"), batch()
    loss, auxiliary, expected = ours(model, rows)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = ours(model, rows)
    assert found[:2] == pytest.approx((loss, auxiliary), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-4, atol=1e-6)


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, rows, objective = model_of("mixtral"), batch(), LanguageObjective()
    total = objective.count(objective.collate(rows))
    sharded = shard(WithLoss(model, objective), 2, CPU).train()
    _, metrics = accumulate(sharded, objective, rows, total, DataParallelRank(rank, 2, 4, "float32", CPU))
    found = {name.removeprefix("model."): gradient for name, gradient in gradients(sharded).items()}
    torch.save((metrics[AUXILIARY_LOSS] / total, found), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_add_their_gradients_of_the_auxiliary_loss(tmp_path: Path):
    multiprocessing.spawn(_worker, (tmp_path,), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model, rows, objective = model_of("mixtral"), batch(), LanguageObjective()
    total = objective.count(objective.collate(rows))
    auxiliary, expected = 0.0, dict[str, torch.Tensor]()
    for rank in range(2):
        model.zero_grad()
        # The rows of one worker of two, whose forward passes are those of a lone worker with these rows alone.
        worker = DataParallelRank(rank, 2, 4, "float32", CPU)
        _, metrics = accumulate(WithLoss(model, objective).train(), objective, rows, total, worker)
        auxiliary += metrics[AUXILIARY_LOSS] / total
        for name, gradient in gradients(model).items():
            expected[name] = expected.get(name, 0) + gradient / 2
    assert sum(part[0] for part in parts) == pytest.approx(auxiliary, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(parts[0][1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_log_says_where_the_auxiliary_loss_is_not_trained_on():
    mixtral = model_of("mixtral")
    assert is_balanced(mixtral)
    assert unused_auxiliary_loss(mixtral, is_language=True) == ""
    assert "(coefficient 0.3) is not trained on by this objective" in unused_auxiliary_loss(mixtral, is_language=False)
    for config in (LlamaConfig(**SMALL), MIXTURES["deepseek"]):
        assert not is_balanced(AutoModelForCausalLM.from_config(config))
    assert isinstance(MIXTURES["deepseek"], DeepseekV3Config)
    assert unused_auxiliary_loss(AutoModelForCausalLM.from_config(MIXTURES["deepseek"]), True) == ""
