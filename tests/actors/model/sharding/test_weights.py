"""Workers that share a model read their parts of it, and write it again, without one that holds the whole."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from actors.model import causal_lm, lora
from actors.model.causal_lm import grow_embeddings, load_for_training, set_end_token
from actors.model.microbatch import DataParallelRank, accumulate, sum_over_workers
from actors.model.optim import adamw
from actors.model.reward_head import load_reward_model, with_new_head
from actors.model.sharding import export
from actors.model.sharding.export import export_shared
from actors.model.sharding.fsdp import ShardedModel, WithLoss, gather_to_cpu, set_trained, shard, trained
from actors.model.sharding.weights import StoredWeights, empty_model, is_empty, refill
from actors.objectives.lm import LanguageObjective
from actors.rollout.weights import stored
from cluster.errors import UserError
from cluster.recipe.base import Precision, TrainingLora
from cluster.recipe.model import Model
from cluster.run.weight_files import INDEX, weight_files, weights_fingerprint
from tests.actors.model.test_microbatch import batch
from tests.tiny import SIZES, tiny_llama, tiny_tokenizer, write_tiny_reward_model

CPU = torch.device("cpu")
ADAPTERS = TrainingLora(rank=4, alpha=8, dora=True)


def write_model(folder: Path, tied: bool) -> None:
    """Writes a model whose vocabulary does not divide by two, in bfloat16 and in several files if it is not tied."""
    tokenizer = tiny_tokenizer(301)
    made = tiny_llama(1, len(tokenizer), tie_word_embeddings=tied, max_position_embeddings=64, initializer_range=0.3)
    made.generation_config.do_sample, made.generation_config.temperature = True, 0.5
    if tied:
        made.save_pretrained(folder)
    else:
        made.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
        assert len(weight_files(folder)) > 2
    tokenizer.save_pretrained(folder)


def longer_tokenizer(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|extra|>", "<|other|>", "<|third|>"])
    return tokenizer


def grown(folder: Path) -> Any:
    made = causal_lm.load(folder)
    grow_embeddings(made, longer_tokenizer(folder), 3)
    return made


def adapted(folder: Path) -> Any:
    made = causal_lm.load(folder)
    set_end_token(made, 4)
    lora.add(made, ADAPTERS, 5, rows=[2, 3])
    return made


def started(folder: Path) -> Any:
    settings = Model(start_from=str(folder), context=32)
    return load_for_training(settings, AutoTokenizer.from_pretrained(folder), 0)


CASES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tied": ("tied", causal_lm.load),
    "untied": ("untied", causal_lm.load),
    "grown": ("tied", grown),
    "grown untied": ("untied", grown),
    "adapted": ("tied", adapted),
    "started": ("untied", started),
    "reward": ("reward", load_reward_model),
    "new head": ("untied", with_new_head),
}
# The cases that are exported, with the precision of their weights.
PRECISIONS: dict[str, Precision] = {"untied": "float32", "adapted": "float32", "grown": "bfloat16"}


def sum_of_outputs(model: Any) -> Tensor:
    return model(input_ids=torch.arange(8).unsqueeze(0)).logits.abs().sum().detach()


def losses_of_training(folder: Path, rank: int, workers: int) -> Tensor:
    """Returns the losses of four steps of AdamW, in float32."""
    objective, rows = LanguageObjective(), batch()
    model = shard(WithLoss(causal_lm.load(folder), objective), workers, CPU).train()
    optimizer = adamw(list(model.parameters()), 1e-3, 0.1)
    total, own = objective.count(objective.collate(rows)), DataParallelRank(rank, workers, 2, "float32", CPU)
    losses = []
    for _ in range(4):
        loss, _ = sum_over_workers(*accumulate(model, objective, rows, total, own), own)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
    return torch.tensor(losses)


def worker(rank: int, folder: Path, finished: Barrier) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    export.FILE_BYTES = 200_000
    for name, (start, make) in CASES.items():
        made = make(folder / start)
        assert is_empty(made), name
        sharded = ShardedModel(made, 2, CPU, nullcontext)
        assert not is_empty(made), name
        found = gather_to_cpu(dict(made.named_parameters()), keep=rank == 0)
        output = sharded(sum_of_outputs)
        if rank == 0:
            save_file({**found, "output": output}, folder / f"{name}.safetensors")
        if name in PRECISIONS:
            tokenizer = AutoTokenizer.from_pretrained(folder / start)
            export_shared(
                made, tokenizer, folder / "exports" / name, rank, "bfloat16" if name == "grown" else "float32"
            )
    for start in ("tied", "untied"):
        losses = losses_of_training(folder / start, rank, 2)
        if rank == 0:
            save_file({"losses": losses}, folder / f"losses {start}.safetensors")
    before = gather_to_cpu(dict(made.named_parameters()), keep=True)
    set_trained(made, {name: value + 1 for name, value in trained(made).items()})
    refill(made, {"score.weight": before["score.weight"]})
    after = gather_to_cpu(dict(made.named_parameters()), keep=True)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(UserError, match="more than the 64 positions"):
        load_for_training(Model(start_from=str(folder / "tied"), context=128), None, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does more to its logits than to scale them"):
        load_for_training(Model(start_from=str(folder / "capped"), context=32), None, 0)  # type: ignore[arg-type]
    finished.wait(timeout=60)
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the tensors that two workers read and exported in each case."""
    folder = tmp_path_factory.mktemp("shared")
    write_model(folder / "tied", True)
    write_model(folder / "untied", False)
    write_tiny_reward_model(folder / "reward", 0.0, 1.0)
    write_capped(folder / "capped")
    (folder / "exports").mkdir()
    finished = multiprocessing.get_context("spawn").Barrier(2)
    multiprocessing.spawn(worker, (folder, finished), nprocs=2)
    return folder


def write_capped(folder: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **(SIZES | {"num_hidden_layers": 4}),
        vocab_size=301,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=64,
        initializer_range=0.5,
        final_logit_softcapping=3.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_workers_hold_together_what_one_holds(found: Path, case: str) -> None:
    start, make = CASES[case]
    expected = make(found / start).eval()
    values = load_file(found / f"{case}.safetensors")
    output = values.pop("output")
    own = dict(expected.named_parameters())
    assert values.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(
            values[name], value.detach(), rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert float(output) == pytest.approx(float(sum_of_outputs(expected)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["tied", "untied"])
def test_workers_have_the_losses_of_one(found: Path, start: str) -> None:
    losses = load_file(found / f"losses {start}.safetensors")["losses"]
    expected = losses_of_training(found / start, 0, 1)
    assert expected[-1] < expected[0]
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", PRECISIONS)
def test_workers_write_the_model_that_one_would_write(found: Path, case: str, tmp_path: Path) -> None:
    start, make = CASES[case]
    made, tokenizer = make(found / start), AutoTokenizer.from_pretrained(found / start)
    causal_lm.save(made, tokenizer, tmp_path, precision=PRECISIONS[case])
    exported = found / "exports" / case
    several = len(weight_files(exported)) > 1
    assert several == (exported / INDEX).is_file()
    expected, written = dict(stored(tmp_path)), dict(stored(exported))
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        assert written[name].dtype == value.dtype
        torch.testing.assert_close(written[name].float(), value.float(), rtol=0, atol=1e-6)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((exported / file).read_text()) == json.loads((tmp_path / file).read_text())
    assert {path.name for path in exported.glob("*.json")} - {INDEX} == {path.name for path in tmp_path.glob("*.json")}
    again = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    assert again.num_parameters() == made.num_parameters() - sum(
        value.numel() for name, value in made.named_parameters() if lora.is_adapter(name)
    )


def test_files_that_cannot_be_read_by_parts_are_loaded_whole(tmp_path: Path) -> None:
    settings = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    experts = MixtralConfig(**settings, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(experts).save_pretrained(tmp_path / "experts")
    assert empty_model(AutoModelForCausalLM, tmp_path / "experts") is None
    LlamaForCausalLM(LlamaConfig(**settings, num_attention_heads=2)).save_pretrained(tmp_path / "cut")
    assert empty_model(AutoModelForCausalLM, tmp_path / "cut") is not None
    tensors = load_file(tmp_path / "cut" / "model.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "cut" / "model.safetensors")
    assert empty_model(AutoModelForCausalLM, tmp_path / "cut") is None


def test_a_model_of_the_hub_is_read_from_the_cache_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    assert empty_model(AutoModelForCausalLM, "someone/another") is None
    cached = tmp_path / "models--someone--theirs"
    write_model(cached / "snapshots" / "abc", False)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    found = empty_model(AutoModelForCausalLM, "someone/theirs")
    assert is_empty(found)
    assert set(found.stored_weights.files.values()) == set(weight_files(cached / "snapshots" / "abc"))


def test_the_fingerprint_of_several_files_is_of_all_of_them(tmp_path: Path) -> None:
    write_model(tmp_path / "one", False)
    files = weight_files(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    assert weights_fingerprint(tmp_path / "one") == weights_fingerprint(tmp_path / "other")
    # A file of another layout, which transformers does not read, does not count.
    save_file({"w": torch.zeros(2)}, tmp_path / "other" / "consolidated.safetensors")
    assert weights_fingerprint(tmp_path / "one") == weights_fingerprint(tmp_path / "other")
    last = tmp_path / "other" / files[-1].name
    tensors = load_file(last)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, last)
    assert weights_fingerprint(tmp_path / "one") != weights_fingerprint(tmp_path / "other")
    last.unlink()
    with pytest.raises(UserError, match=f"lacks {last.name}"):
        weights_fingerprint(tmp_path / "other")
    assert set(StoredWeights.of(tmp_path / "one").shapes()) == set(dict(stored(tmp_path / "one")))
