"""The proof that an exported model is the one that was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CohereConfig

from actors.model import lora
from actors.model.causal_lm import grow_embeddings, load, save
from actors.model.microbatch import DataParallelRank
from actors.model.reward_head import load_reward_model
from actors.model.sharding.export import export_shared
from actors.model.sharding.fsdp import WithLoss
from actors.model.sharding.weights import whole_weights
from actors.objectives.bradley_terry import BradleyTerryObjective
from actors.objectives.lm import LanguageObjective
from actors.rollout.weights import stored
from actors.trainer.data import shards_in
from actors.trainer.proof import note_export, proof_rows, prove_copy, prove_export, prove_parts
from cluster.errors import StageError
from cluster.recipe.base import Lora, Precision
from cluster.run.weight_files import weight_files
from tests.tiny import tiny_tokenizer, write_tiny_model, write_tiny_reward_model

WORKER = DataParallelRank(0, 1, 2, "bfloat16", torch.device("cpu"))
CHANCE = np.random.default_rng(1)


@pytest.fixture
def rows(tmp_path: Path) -> pa.Table:
    """Returns the first rows of a shard: two documents and padding in each, as `sft` writes them."""
    columns = {
        "input_ids": [CHANCE.integers(5, 300, 24).tolist() for _ in range(4)],
        "document_ids": [[0] * 9 + [1] * 11 + [-1] * 4] * 4,
        "loss_mask": [[False] * 4 + [True] * 20] * 4,
    }
    parquet.write_table(pa.table(columns), tmp_path / "shard-00000.parquet")
    found = proof_rows(shards_in(tmp_path))
    assert found.num_rows == 2
    return found


def proven(base: Any, out: Path, objective: Any, rows: pa.Table) -> float:
    model = WithLoss(base, objective)
    save(base, tiny_tokenizer(), out)
    note_export(model, rows, out, WORKER)
    return prove_export(objective, rows, out, WORKER)


def spoil(out: Path, ending: str, factor: float = 1.01) -> None:
    file = out / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith(ending))
    weights[name] = weights[name] * factor
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["full", "adapters", "scaled logits"])
def test_an_export_has_the_loss_of_the_model_in_memory(tmp_path: Path, rows: pa.Table, kind: str):
    write_tiny_model(tmp_path / "base", seed=1, end_id=4)
    if kind == "scaled logits":
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CohereConfig(vocab_size=400, num_key_value_heads=2, logit_scale=0.3, initializer_range=0.3, **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base")
    if kind == "adapters":
        lora.add(base, Lora(rank=4), 1)
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if name.endswith(lora.UP):
                    parameter.normal_(0, 0.1)
    assert proven(base, tmp_path / "out", LanguageObjective(), rows) < 1e-5
    spoil(tmp_path / "out", "down_proj.weight")
    with pytest.raises(StageError, match=r"out is not the one that was trained: .* is [\d.]+, and that of"):
        prove_export(LanguageObjective(), rows, tmp_path / "out", WORKER)


@pytest.mark.parametrize("adapters", [False, True])
def test_an_export_in_bfloat16_is_half_as_large_and_proved_to_a_thousandth(
    tmp_path: Path, rows: pa.Table, adapters: bool
):
    write_tiny_model(tmp_path / "base", seed=1, end_id=4)
    base = load(tmp_path / "base")
    with torch.no_grad():
        # Weights of the size of a new model's: those of the tiny model are larger, for the sake of its samples.
        for parameter in base.parameters():
            parameter.mul_(0.1 if parameter.ndim > 1 else 1)
    if adapters:
        lora.add(base, Lora(rank=4), 1)
    save(base, tiny_tokenizer(), tmp_path / "out", precision="bfloat16")
    note_export(WithLoss(base, LanguageObjective()), rows, tmp_path / "out", WORKER)
    difference = prove_export(LanguageObjective(), rows, tmp_path / "out", WORKER, "bfloat16")
    assert 0 < difference < 1e-3
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("base", "out")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.bfloat16
    assert set(load_file(tmp_path / "base" / "model.safetensors")) == set(
        load_file(tmp_path / "out" / "model.safetensors")
    ), "tied weights are there once"
    assert prove_copy(load(tmp_path / "out"), tmp_path / "out") < 1e-6
    spoil(tmp_path / "out", "embed_tokens.weight", factor=2)
    with pytest.raises(StageError, match="is not the one that was trained"):
        prove_export(LanguageObjective(), rows, tmp_path / "out", WORKER, "bfloat16")


def test_a_reward_model_is_proved_by_its_own_objective(tmp_path: Path):
    write_tiny_reward_model(tmp_path / "base", mean=0, deviation=1)
    ids = CHANCE.integers(5, 300, 24).tolist()
    rows = pa.table(
        {"input_ids": [ids], "lengths": [[10, 14]], "ranks": [[1, 2]], "weight": pa.array([1.0], pa.float32())}
    )
    objective = BradleyTerryObjective(0)
    assert proven(load_reward_model(tmp_path / "base"), tmp_path / "out", objective, rows) < 1e-5
    spoil(tmp_path / "out", "score.weight")
    with pytest.raises(StageError, match="is not the one that was trained"):
        prove_export(objective, rows, tmp_path / "out", WORKER)


def test_a_model_that_is_taken_over_is_compared_with_its_copy(tmp_path: Path):
    write_tiny_model(tmp_path, seed=1, end_id=4)
    assert prove_copy(load(tmp_path), tmp_path) < 1e-5
    model = load(tmp_path)
    spoil(tmp_path, "q_proj.weight")
    with pytest.raises(StageError, match="is not the one that was trained"):
        prove_copy(model, tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_is_copied_tensor_by_tensor_and_a_wrong_one_is_named(
    tmp_path: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("actors.model.sharding.export.FILE_BYTES", 200_000)
    write_tiny_model(tmp_path / "start", 1, 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    tokenizer.add_tokens(["<|extra|>"])
    copied = load(tmp_path / "start", by_parts=True)
    grow_embeddings(copied, tokenizer, 0)
    export_shared(copied, tokenizer, tmp_path / "out", 0, precision, whole_weights(copied))
    assert prove_parts(copied, tmp_path / "out", precision) < (1e-6 if precision == "float32" else 0.05)
    expected = load(tmp_path / "start")
    grow_embeddings(expected, tokenizer, 0)
    save(expected, tokenizer, tmp_path / "whole", precision=precision)
    own, whole = (dict(stored(tmp_path / name)) for name in ("out", "whole"))
    assert own.keys() == whole.keys()
    assert all(torch.equal(own[name], value) for name, value in whole.items())
    (*_, last) = weight_files(tmp_path / "out")
    tensors = load_file(last)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, last, metadata={"format": "pt"})
    with pytest.raises(StageError, match=f"is not the one that was read: {name} differs"):
        prove_parts(copied, tmp_path / "out", precision)
