"""Low-rank adapters: their training, their checkpoints and exports, and the merged model."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, MixtralConfig, Qwen3MoeConfig

from actors.model import lora
from actors.model.causal_lm import build, load
from actors.model.chat import unlearned_tokens
from actors.model.microbatch import DataParallelRank, accumulate
from actors.model.optim import make_optimizers
from actors.model.sharding.fsdp import WithLoss
from actors.model.tokenizer import CHAT_TEMPLATE
from actors.objectives.lm import LanguageObjective
from actors.rollout.weights import stored
from actors.trainer import checkpoint
from cluster.errors import UserError
from cluster.recipe.base import Lora, TrainingLora
from cluster.recipe.model import Model
from cluster.runtime.memory import trained_parameters
from tests.tiny import tiny_tokenizer, write_tiny_model

IDS = torch.tensor([[2, 20, 30, 40, 4, 3, 50, 60]])
ROWS = pa.table({"input_ids": [[2, 20, 30, 40, 4, 3, 50, 60]], "document_ids": [[0] * 8]})
WORKER = DataParallelRank(0, 1, 1, "float32", torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_tiny_model(folder, seed=1, end_id=4)
    torch.set_num_threads(1)
    return folder


class Trained:
    """A model with adapters, and its optimizer."""

    def __init__(
        self, base: Path, seed: int = 7, rows: Sequence[int] = (), settings: Lora = Lora(rank=4, alpha=8)
    ) -> None:
        self.base = load(base)
        lora.add(self.base, settings, seed, rows)
        self.model = WithLoss(self.base, LanguageObjective()).train()
        self.optimizers = make_optimizers(self.model, "adamw", 1e-2, 0.1)

    def step(self, count: int = 1) -> list[float]:
        losses = []
        for _ in range(count):
            loss, _ = accumulate(
                self.model, self.model.objective, ROWS, 7, DataParallelRank(0, 1, 1, "float32", torch.device("cpu"))
            )
            losses.append(loss)
            lora.keep_other_rows(self.base)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return losses

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.base.state_dict().items()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_adapters_begin_as_nothing_and_come_from_the_seed(base: Path):
    trained = Trained(base)
    torch.testing.assert_close(logits(trained.base), logits(load(base)), rtol=0, atol=0)
    same, other = Trained(base).weights(), Trained(base, seed=8).weights()
    downs = [name for name in same if name.endswith(lora.DOWN)]
    # Seven linear layers in each of two layers; the output head has none.
    assert len(downs) == 14
    assert all(torch.equal(value, same[name]) for name, value in trained.weights().items())
    assert not any(torch.equal(other[name], same[name]) for name in downs)


def test_the_plan_counts_the_parameters_that_are_trained():
    shape, adapter = Model(vocabulary=300, hidden=64, layers=2, heads=2), Lora(rank=4)
    model = build(shape, 1, end_of_turn=4, padding=0)
    everything = sum(parameter.numel() for parameter in model.parameters())
    lora.add(model, adapter, 7)
    assert trained_parameters(shape, adapter) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(shape, adapter) < everything / 8


def test_only_adapters_are_trained(base: Path):
    trained = Trained(base)
    before = trained.weights()
    losses = trained.step(4)
    assert losses[-1] < losses[0]
    changed = {name for name, value in trained.weights().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens_that_the_model_has_not_learned_are_trained_beside_adapters(
    base: Path, tmp_path: Path, tied: bool
):
    start = load(base)
    start.config.tie_word_embeddings = tied
    start.lm_head.weight = start.lm_head.weight if tied else torch.nn.Parameter(start.lm_head.weight.detach().clone())
    start.save_pretrained(tmp_path / "start")
    new = [2, 3, 4]
    trained = Trained(tmp_path / "start", rows=new)
    before = trained.weights()
    trained.step(4)
    after = trained.weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed = (after[name] != before[name]).any(dim=1).nonzero().flatten().tolist()
        assert changed == new, name
    expected = logits(trained.base)
    checkpoint.export(trained.model, trained.base, AutoTokenizer.from_pretrained(base), tmp_path / "out", rank=0)
    torch.testing.assert_close(
        logits(load(tmp_path / "out")), expected, rtol=0, atol=5e-6 * float(expected.abs().max())
    )
    assert not (tmp_path / "out" / lora.FOLDER).exists()


def test_tokens_of_triptychs_template_are_the_ones_to_learn():
    tokenizer = tiny_tokenizer()
    assert unlearned_tokens(tokenizer) == []
    tokenizer.chat_template = CHAT_TEMPLATE
    assert unlearned_tokens(tokenizer) == [1, 2, 3, 4]


SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "eos_token_id": 4,
}
MIXTURES = {
    "deepseek": DeepseekV3Config(
        **SMALL,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
    "qwen": Qwen3MoeConfig(**SMALL, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=16),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_export_of_a_mixture_of_experts_computes_what_was_trained(base: Path, tmp_path: Path, kind: str):
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(MIXTURES[kind]).save_pretrained(tmp_path / "start")
    trained = Trained(tmp_path / "start")
    trained.step(4)
    adapted = {name.split(".")[3] for name in trained.weights() if lora.is_adapter(name)}
    assert adapted == {"self_attn"}
    expected = logits(trained.base)
    assert float((expected - logits(load(tmp_path / "start"))).abs().max()) > 0.02
    checkpoint.export(trained.model, trained.base, AutoTokenizer.from_pretrained(base), tmp_path / "out", rank=0)
    rounding = 5e-6 * float(expected.abs().max())
    torch.testing.assert_close(logits(load(tmp_path / "out")), expected, rtol=0, atol=rounding)
    # vLLM and PEFT read the adapter on its own in the same way.
    from peft import PeftModel

    beside = PeftModel.from_pretrained(load(tmp_path / "start"), tmp_path / "out" / lora.FOLDER)
    torch.testing.assert_close(logits(beside), expected, rtol=0, atol=rounding)


def test_scaled_adapters_are_small_and_merge_into_the_same_model(base: Path):
    trained = Trained(base)
    trained.step(4)
    weights = trained.weights()
    sent = lora.scaled_adapters(trained.base, weights)
    expected = lora.merged_weights(trained.base, weights)
    expected.pop("lm_head.weight")
    found = dict(lora.merge_into(stored(base), sent))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert sum(map(torch.Tensor.numel, sent.values())) < sum(map(torch.Tensor.numel, found.values())) / 4


def test_a_change_below_bfloat16_is_kept_in_the_mean():
    torch.manual_seed(1)
    stored_weight, down, up = torch.randn(512, 512).bfloat16(), torch.randn(4, 512), 1e-5 * torch.randn(512, 4)
    change = up @ down

    def merged(up: torch.Tensor) -> torch.Tensor:
        adapters = {f"layer{lora.DOWN}": down, f"layer{lora.UP}": up}
        ((_, found),) = lora.merge_into([("layer.weight", stored_weight)], adapters, torch.bfloat16)
        assert found.dtype is torch.bfloat16
        return found.float()

    def kept(found: torch.Tensor) -> float:
        return float(((found - stored_weight.float()) * change).sum() / change.square().sum())

    exact = stored_weight.float() + change
    assert kept(exact.bfloat16().float()) < 0.25
    assert kept(merged(up)) == pytest.approx(1, abs=0.1)
    assert torch.equal(merged(up), merged(up))
    # Every weight is rounded to one of its two neighbors; without a change none moves.
    assert bool(((merged(up) - exact).abs() < 2**-7 * exact.abs()).all())
    assert torch.equal(merged(torch.zeros_like(up)), stored_weight.float())


def test_a_layer_that_cannot_have_an_adapter_is_named(base: Path):
    with pytest.raises(UserError, match=r"no linear layer lm_head, qkv that can .*; it has down_proj, gate_"):
        lora.add(load(base), Lora(targets=["q_proj", "qkv", "lm_head"]), 1)


def test_disabled_adapters_leave_the_base_model(base: Path):
    trained = Trained(base)
    trained.step(4)
    after = logits(trained.base)
    with lora.disabled(trained.base) as unwrapped_model:
        assert torch.equal(logits(unwrapped_model), logits(load(base)))
    assert torch.equal(logits(trained.base), after)
    losses = trained.step(3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "settings",
    [
        Lora(rank=4, alpha=8),
        Lora(rank=4, alpha=8, rank_stabilized=True, targets=["q_proj", "down_proj"]),
        TrainingLora(rank=4, alpha=8, dora=True, dropout=0.1),
    ],
)
def test_the_exported_model_and_the_adapter_on_its_own_compute_what_was_trained(
    base: Path, tmp_path: Path, settings: Lora
):
    from peft import PeftModel

    trained = Trained(base, settings=settings)
    torch.testing.assert_close(logits(trained.base.eval()), logits(load(base)))
    trained.model.train()
    trained.step(4)
    trained.model.eval()
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in trained.weights() if ".lora_" in name}
    assert targets == set(settings.targets or targets)
    assert any(name.endswith(lora.LENGTHS) for name in trained.weights()) == getattr(settings, "dora", False)
    expected = logits(trained.base)
    assert float((expected - logits(load(base))).abs().max()) > 0.1
    checkpoint.export(trained.model, trained.base, AutoTokenizer.from_pretrained(base), tmp_path, rank=0)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {name for name, _ in exported.named_parameters()} == {name for name, _ in load(base).named_parameters()}
    # In float32, a sum in another order differs by some 2^-22 of what is summed.
    rounding = 5e-6 * float(expected.abs().max())
    torch.testing.assert_close(logits(exported), expected, rtol=0, atol=rounding)
    beside = PeftModel.from_pretrained(load(base), tmp_path / lora.FOLDER)
    torch.testing.assert_close(logits(beside), expected, rtol=0, atol=rounding)
    # PEFT's own merge is the reference.
    merged = deepcopy(beside).merge_and_unload().state_dict()
    ours = exported.state_dict()
    assert merged.keys() == ours.keys()
    assert all(torch.allclose(ours[name], value, rtol=0, atol=1e-6) for name, value in merged.items())


def test_training_goes_on_from_a_checkpoint_of_the_adapters_alone(base: Path, tmp_path: Path):
    undisturbed, first = Trained(base), Trained(base)
    expected = undisturbed.step(4)
    losses = first.step(2)
    checkpoint.write(checkpoint.training_state(first.model, first.optimizers), tmp_path)
    second = Trained(base, seed=8)
    state = checkpoint.training_state(second.model, second.optimizers)
    checkpoint.read(state, tmp_path)
    checkpoint.load_training_state(second.model, second.optimizers, state)
    assert losses + second.step(2) == expected
    assert all(torch.equal(value, undisturbed.weights()[name]) for name, value in second.weights().items())
    written = {name for name in FileSystemReader(tmp_path).read_metadata().state_dict_metadata if "model." in name}
    assert written
    assert all(".lora_" in name for name in written)


@pytest.mark.parametrize("other", [{"hidden": 128}, {"hidden": 64, "layers": 3}])
def test_a_checkpoint_of_another_shape_is_named_and_nothing_is_taken_from_it(tmp_path: Path, other: dict[str, int]):
    def made(**shape: int) -> tuple[WithLoss, list[torch.optim.Optimizer]]:
        unwrapped_model = build(Model(vocabulary=300, **{"layers": 2, **shape}), 1, end_of_turn=4, padding=0)
        model = WithLoss(unwrapped_model, LanguageObjective())
        return model, make_optimizers(model, "adamw", 1e-2, 0.1)

    checkpoint.write(checkpoint.training_state(*made(hidden=64)), tmp_path)
    model, optimizers = made(**other)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="is damaged or of a model of another shape; remove it"):
        checkpoint.read(checkpoint.training_state(model, optimizers), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
