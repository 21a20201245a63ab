"""Models of other architectures: those that training supports, and why the others are refused."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    Olmo3Config,
    OPTConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from actors.model import lora
from actors.model.attention.packed import attention_window
from actors.model.causal_lm import load, load_for_training
from actors.model.forward import last_hidden_states, next_token_loss
from actors.model.parts import layers_of
from actors.model.start_checks import _check_packing, _check_window
from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.model import Model
from tests.tiny import SMALL, write_tiny_model


def test_a_context_longer_than_the_models_is_refused(own: Path):
    tokenizer = AutoTokenizer.from_pretrained(own)
    with pytest.raises(UserError, match=r"context 128 is more than the 64 positions"):
        load_for_training(Model(start_from=str(own), context=128), tokenizer, seed=1)


CONTEXT = 64


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Returns a model with a chat template of its own."""
    write_tiny_model(tmp_path / "own", seed=1, end_id=4, context=CONTEXT)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma2Config(**SMALL, final_logit_softcapping=0.01, num_key_value_heads=2), "does more to its logits"),
        (ModernBertDecoderConfig(**SMALL, intermediate_size=16, pad_token_id=0), "does more to its logits"),
        (BertConfig(**SMALL, intermediate_size=16), "is not made of layers and an output head"),
        (FalconConfig(**SMALL, alibi=True), "cannot compute several texts in a row"),
        (Lfm2Config(**SMALL, num_key_value_heads=2, layer_types=["conv"]), "has layers of the kind conv, which do not"),
        (RecurrentGemmaConfig(**SMALL, lru_width=16), "has layers of the kind attention, recurrent, which do not"),
    ],
)
def test_an_architecture_that_training_does_not_support_is_refused(own: Path, tmp_path: Path, config, reason: str):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match=f"odd: a model of the kind {config.model_type} {reason}"):
        load_for_training(
            Model(start_from=str(tmp_path / "odd"), context=CONTEXT), AutoTokenizer.from_pretrained(own), seed=1
        )


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(**SMALL),
        GPTNeoXConfig(**SMALL, intermediate_size=16),
        OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=16, pad_token_id=0),
        FalconConfig(**SMALL),
    ],
)
def test_the_parts_of_a_model_may_have_other_names(own: Path, tmp_path: Path, config):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "named")
    model = load_for_training(
        Model(start_from=str(tmp_path / "named"), context=CONTEXT), AutoTokenizer.from_pretrained(own), seed=1
    )
    assert len(layers_of(model)) == 1
    ids, mask = torch.arange(8).unsqueeze(0), torch.ones(1, 8, dtype=torch.bool)
    expected = model(input_ids=ids, labels=ids).loss
    assert float(next_token_loss(model, ids, mask)) / 7 == pytest.approx(float(expected), abs=1e-4)


def test_a_model_without_linear_layers_gets_no_adapters():
    with pytest.raises(UserError, match="of the kind gpt2 has no linear layers"):
        lora.add(AutoModelForCausalLM.from_config(GPT2Config(**SMALL)), Lora(rank=2), seed=1)


class Peeks(LlamaForCausalLM):
    """A model each of whose states is that of the last token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.register_forward_hook(lambda _module, _inputs, output: self._peek(output))

    def _peek(self, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state[:, -1:]
        return output


def test_a_model_that_attends_to_what_follows_is_refused():
    with pytest.raises(UserError, match="of the kind llama attends to what follows a token"):
        _check_packing(Peeks(LlamaConfig(**SMALL, intermediate_size=16)).eval(), "peeks")


WINDOWED = {**SMALL, "num_key_value_heads": 2, "sliding_window": 12, "initializer_range": 0.3, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**WINDOWED),
        Gemma2Config(**WINDOWED, final_logit_softcapping=None, attn_logit_softcapping=None),
        Gemma3TextConfig(**WINDOWED, layer_types=["sliding_attention", "full_attention"], head_dim=8),
        Olmo3Config(**WINDOWED, layer_types=["sliding_attention", "full_attention"]),
        Qwen2Config(**WINDOWED, use_sliding_window=True, max_window_layers=1),
        Qwen2Config(**WINDOWED, use_sliding_window=False),
    ],
)
def test_rows_may_be_longer_than_the_attention_window(own: Path, tmp_path: Path, config):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "windowed")
    tokenizer = AutoTokenizer.from_pretrained(own)
    settings = Model(start_from=str(tmp_path / "windowed"), context=CONTEXT)
    model = load_for_training(settings, tokenizer, seed=1)
    ids = torch.randint(5, 300, (1, 50), generator=torch.Generator().manual_seed(2))
    documents = torch.tensor([[0] * 20 + [1] * 30])
    with torch.no_grad():
        alone = [model.model(input_ids=part).last_hidden_state for part in (ids[:, :20], ids[:, 20:])]
        packed = last_hidden_states(model, ids, documents)
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-3, atol=1e-4)
    if attention_window(model.config):
        changed = ids.clone()
        changed[0, 20] = 5
        with torch.no_grad():
            assert not torch.equal(last_hidden_states(model, changed, documents)[:, 21], packed[:, 21])


def test_a_window_that_a_model_does_not_keep_in_packed_rows_is_refused(own: Path, tmp_path: Path):
    AutoModelForCausalLM.from_config(MistralConfig(**WINDOWED)).save_pretrained(tmp_path / "windowed")
    model = load(tmp_path / "windowed")
    # This model attends to everything, whatever its configuration says.
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match=r"context 64 is more than the 12 tokens that layers of .*windowed attend"):
        _check_window(model, Model(start_from=str(tmp_path / "windowed"), context=CONTEXT))
    _check_window(model, Model(start_from=str(tmp_path / "windowed"), context=32).model_copy(update={"context": 12}))


SIZES_OF_OTHERS = {"hidden_size": 16, "d_model": 16, "n_layer": 1, "n_layers": 1, "n_head": 2, "n_heads": 2}


@pytest.mark.parametrize("kind", [BloomConfig, MptConfig])
def test_models_with_an_attention_of_their_own_are_refused(own: Path, tmp_path: Path, kind: type):
    AutoModelForCausalLM.from_config(kind(**SIZES_OF_OTHERS, vocab_size=300)).save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match=r"cannot load a model from .*odd: \w+ does not support an attention"):
        load_for_training(
            Model(start_from=str(tmp_path / "odd"), context=CONTEXT), AutoTokenizer.from_pretrained(own), seed=1
        )


def test_pickled_weights_are_refused(own: Path):
    torch.save(load(own).state_dict(), own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(own)
