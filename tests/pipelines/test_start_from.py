"""Training that starts from an existing model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from actors.model.causal_lm import load, load_for_training
from actors.model.chat import Chat, unlearned_tokens
from actors.model.reward_head import load_reward_model
from actors.model.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, begin_of_text, end_of_text
from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.collect import ChatSource
from cluster.recipe.loading import load_recipe
from cluster.recipe.model import Model
from cluster.recipe.training import FineTuning
from cluster.run.folder import RunFolder
from cluster.run.layout import stages_of
from cluster.run.stages import stage_state
from pipelines import sft
from pipelines.corpus.tokens.encode import encode_documents
from pipelines.corpus.tokens.train import document_frame, save_tokenizer_of
from pipelines.pretrain import _load_start
from pipelines.stage_table import run_named_stage
from tests.tiny import SMALL, write_tiny_model

CONTEXT = 64


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Returns a model with a chat template of its own."""
    write_tiny_model(tmp_path / "own", seed=1, end_id=4, context=CONTEXT)
    return tmp_path / "own"


def without_template(model: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    return model


def test_the_corpus_is_tokenized_with_the_models_own_tokenizer(own: Path, tmp_path: Path):
    save_tokenizer_of(str(own), tmp_path / "tokenizer", CONTEXT)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(own)
    assert ours.chat_template == theirs.chat_template != CHAT_TEMPLATE
    text = "The capital of Peru is Lima."
    (encoded,) = encode_documents(tmp_path / "tokenizer" / "tokenizer.json", [text])
    assert encoded.tolist() == theirs.encode(text, add_special_tokens=False)
    assert document_frame(tmp_path / "tokenizer") == ([], theirs.pad_token_id)


def test_the_begin_and_the_end_of_text_of_a_model_are_kept(own: Path, tmp_path: Path):
    model = without_template(own)
    tokenizer = AutoTokenizer.from_pretrained(model)
    # The tokenizer of Llama 3's base model puts this token before every text.
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})
    tokenizer.pad_token = None
    begin, end = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    tokenizer.save_pretrained(tmp_path / "base")
    save_tokenizer_of(str(tmp_path / "base"), tmp_path / "tokenizer", CONTEXT)
    assert document_frame(tmp_path / "tokenizer") == ([begin], end)
    chat = Chat.of(tmp_path / "tokenizer")
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rendered = chat.conversation(talk)
    assert rendered.token_ids[0] == begin == chat.prompt(talk[:1])[0]
    assert rendered.token_ids.count(begin) == 1
    assert rendered.loss_mask[0] is False
    assert rendered.token_ids[-1] == chat.end_of_turn_id != end
    assert unlearned_tokens(chat.tokenizer) == chat.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS[1:]))


@pytest.mark.parametrize(
    ("eos", "others", "expected"),
    [
        ("<|eot_id|>", ["<|end_of_text|>"], "<|end_of_text|>"),
        ("<end_of_turn>", ["<eos>", "<pad>"], "<eos>"),
        ("<|im_end|>", [], "<|im_end|>"),
    ],
)
def test_the_end_of_text_is_not_that_of_a_turn(eos: str, others: list[str], expected: str):
    core = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    assert end_of_text(tokenizer) == expected
    assert begin_of_text(tokenizer) == []


def test_a_base_model_gets_a_chat_template_and_embeddings_for_its_tokens(own: Path, tmp_path: Path):
    model = without_template(own)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(model)
    save_tokenizer_of(str(model), tmp_path / "tokenizer", CONTEXT)
    chat = Chat.of(tmp_path / "tokenizer")
    rendered = chat.conversation([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    assert rendered.token_ids[0] == chat.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[2])
    assert rendered.token_ids[-1] == chat.end_of_turn_id == chat.tokenizer.convert_tokens_to_ids("<|end|>")

    before = load(model).get_input_embeddings().weight
    settings = Model(start_from=str(model), context=CONTEXT)
    after = load_for_training(settings, chat.tokenizer, seed=1).get_input_embeddings().weight
    assert torch.equal(after, load_for_training(settings, chat.tokenizer, seed=1).get_input_embeddings().weight)
    assert len(after) == len(chat.tokenizer) == len(before) + 1
    assert torch.equal(after[: len(before)], before)


EXPERTS = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 16, "num_experts_per_tok": 1}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(**EXPERTS, num_experts=2, moe_intermediate_size=16, head_dim=8),
        OlmoeConfig(**EXPERTS, num_experts=2),
        MixtralConfig(**EXPERTS, num_local_experts=2),
    ],
)
def test_a_mixture_of_experts_is_refused_before_rlhf_unless_dpo_can_use_it(own: Path, tmp_path: Path, config):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "experts")
    tokenizer = AutoTokenizer.from_pretrained(own)
    path = fine_tuning_alone(tmp_path, own)
    computed = "rlhf.rewards=[{kind: function, function: 'operator:length_hint'}]"
    start = [f"model.start_from={tmp_path / 'experts'}", computed]
    with pytest.raises(UserError, match=f"experts: a model of the kind {config.model_type} is a mixture of experts"):
        _load_start(load_recipe(path, start), tokenizer)
    assert _load_start(load_recipe(path, [*start, "dpo={}"]), tokenizer).config.model_type == config.model_type


def test_a_model_that_cannot_be_a_reward_model_is_refused_where_one_is_needed(own: Path, tmp_path: Path):
    granite, tokenizer = tmp_path / "granite", AutoTokenizer.from_pretrained(own)
    config = GraniteConfig(**{**SMALL, "vocab_size": len(tokenizer)}, num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(granite)
    tokenizer.save_pretrained(granite)
    path = fine_tuning_alone(tmp_path, granite)
    recipe = load_recipe(path)
    with pytest.raises(UserError, match="a model of the kind granite cannot be made a reward model"):
        run_named_stage(stages_of(recipe)[0], recipe, RunFolder(recipe.folder))
    computed = ["rlhf.rewards=[{kind: function, function: 'operator:length_hint'}]", f"run={tmp_path / 'computed'}"]
    recipe = load_recipe(path, computed)
    assert run_named_stage(stages_of(recipe)[0], recipe, RunFolder(recipe.folder)) == "done"
    with pytest.raises(UserError, match=r"cannot load a reward model from .*granite"):
        load_reward_model(granite)


@pytest.mark.parametrize("adapters", [None, Lora(rank=2)])
def test_fine_tuning_takes_another_template_and_keeps_the_other_ends(own: Path, tmp_path: Path, adapters: Lora | None):
    base = load(own)
    base.generation_config.eos_token_id = [4, 0]
    base.save_pretrained(own)
    sources = [ChatSource(kind="files", path="chats.jsonl")]
    folder = sft._tokenizer(FineTuning(sources=sources, chat_template="chatml"), own, tmp_path / "sft")
    assert sft._tokenizer(FineTuning(sources=sources), own, tmp_path / "sft") == own
    model, _, tokenizer = sft._model(own, folder, adapters, seed=1)
    begin, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (begin, end) == (len(AutoTokenizer.from_pretrained(own)), len(tokenizer) - 1)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert tokenizer.eos_token_id == model.config.eos_token_id == end
    assert model.generation_config.eos_token_id == [end, 4, 0]
    assert getattr(model, "trained_rows", None) == ((begin, end) if adapters else None)


def write_gguf(model: Path, file: Path) -> None:
    """Writes the model and its tokenizer in one file, as llama.cpp's converter does, in float32."""
    language, tokenizer = load(model), AutoTokenizer.from_pretrained(model)
    config, core = language.config, json.loads((model / "tokenizer.json").read_text())["model"]
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    # Control tokens are of kind 3, others of kind 1.
    writer.add_token_types([3 if token < 5 else 1 for token in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, value in language.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(gguf_name(name), rotated(name, value.numpy(), config.num_attention_heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    names = {"embed_tokens": "token_embd", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"} | {"self_attn.o_proj": "attn_output"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")} | {"model.norm": "output_norm"}
    for ours, theirs in {**names, "model.": "", "layers": "blk"}.items():
        name = name.replace(ours, theirs)
    return name


def rotated(name: str, weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders a head: llama.cpp turns neighboring dimensions where transformers turns the two halves."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def fine_tuning_alone(tmp_path: Path, model: Path) -> Path:
    """Writes a recipe without text to pre-train on."""
    (tmp_path / "chats.jsonl").write_text('{"question": "hi", "answer": "hello"}\n' * 8)
    recipe = tmp_path / "recipe.yaml"
    sources = f"{{sources: [{{kind: files, path: {tmp_path / 'chats.jsonl'}}}]}}"
    recipe.write_text(
        f"name: own\nrun: {tmp_path / 'run'}\nmodel: {{start_from: {model}, context: {CONTEXT}}}\n"
        f"sft: {sources}\ncollect: {sources}\n"
    )
    return recipe


def test_without_a_corpus_the_base_is_the_start_model_also_from_gguf(own: Path, tmp_path: Path):
    write_gguf(own, tmp_path / "own.gguf")
    recipe = load_recipe(fine_tuning_alone(tmp_path, tmp_path / "own.gguf"))
    run, stages = RunFolder(recipe.folder), stages_of(recipe)
    assert [stage.name for stage in stages] == ["pretrain", "sft", "collect", "reward", "rlhf", "evaluate"]
    assert stage_state(stages[0], recipe, run).name == "pending"
    assert run_named_stage(stages[0], recipe, run) == "done"
    assert stage_state(stages[0], recipe, run).name == "done"
    assert stage_state(stages[1], recipe, run).name == "pending"

    base, ids = run.path("base"), torch.tensor([[2, 20, 30, 40, 4]])
    assert {file.suffix for file in base.iterdir()} == {".jinja", ".json", ".safetensors"}
    with torch.no_grad():
        torch.testing.assert_close(load(base)(ids).logits, load(own)(ids).logits, rtol=0, atol=1e-4)
    ours, theirs = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(own)
    text = "What is the capital of Peru? Sechs, 東京 <|end|>\n"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text
    whole = (tmp_path / "own.gguf").read_bytes()
    (tmp_path / "own.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"own\.gguf"):
        load(tmp_path / "own.gguf")
    assert (ours.chat_template, ours.eos_token, ours.pad_token) == (theirs.chat_template, "<|end|>", "<|endoftext|>")


def test_without_a_reward_model_no_answers_are_ranked(own: Path, tmp_path: Path):
    computed = "rlhf.rewards=[{kind: function, function: 'operator:length_hint'}]"
    path = fine_tuning_alone(tmp_path, own)
    stages = {stage.name: stage for stage in stages_of(load_recipe(path, [computed]))}
    assert list(stages) == ["pretrain", "sft", "rlhf", "evaluate"]
    assert (stages["rlhf"].after, stages["evaluate"].after) == (("sft",), ("base", "sft", "policy"))
    with_critic = stages_of(load_recipe(path, [computed, "rlhf.algorithm=ppo"]))
    assert [stage.name for stage in with_critic] == ["pretrain", "sft", "collect", "reward", "rlhf", "evaluate"]


def test_a_recipe_with_neither_corpus_nor_start_model_is_refused(tmp_path: Path, own: Path):
    recipe = fine_tuning_alone(tmp_path, own)
    with pytest.raises(UserError, match=r"corpus\.sources is empty: add sources, or set model\.start_from"):
        load_recipe(recipe, ["model.start_from=null"])
    with pytest.raises(UserError, match="start_from names a model with a shape of its own"):
        load_recipe(recipe, ["model.hidden=64"])
    with pytest.raises(UserError, match=r"rlhf\.pretrain_mix needs text to mix in"):
        load_recipe(recipe, ["rlhf.pretrain_mix=0.1"])
    with pytest.raises(UserError, match=r"sft\.pretrain_share needs text to mix in"):
        load_recipe(recipe, ["sft.pretrain_share=0.1"])


@pytest.mark.parametrize("content", [b"", b"no model", b"GGUF" + bytes(60)])
def test_a_damaged_gguf_file_is_named(tmp_path: Path, content: bytes):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.gguf"):
        load(file)
    with pytest.raises(UserError, match=r"broken\.gguf"):
        save_tokenizer_of(str(file), tmp_path / "tokenizer", CONTEXT)
