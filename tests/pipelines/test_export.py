"""An export is the model: read back by transformers, it has the model's logits, tokens and template."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Regex, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from actors.model.causal_lm import load
from cluster.errors import StageError, UserError
from pipelines.cli.main import main
from pipelines.export import export
from pipelines.gguf_format import _SPLITS, _word_splitting
from tests.tiny import tiny_tokenizer, write_tiny_model, write_tiny_reward_model

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "eos_token_id": 4}
KINDS = {
    "llama": LlamaConfig(**SIZES, vocab_size=410, rope_theta=500.0),
    "llama, tied": LlamaConfig(**SIZES, vocab_size=400, tie_word_embeddings=True),
    "llama, wide heads": LlamaConfig(**SIZES, vocab_size=400, head_dim=32),
    "qwen2": Qwen2Config(**SIZES, vocab_size=400, rms_norm_eps=1e-5),
    "qwen3": Qwen3Config(**SIZES, vocab_size=400, head_dim=128),
}
IDS = torch.tensor([[2, 20, 30, 40, 4, 3, 99, 301]])
TEXT = "What is the capital of Peru? Sechs, 東京 <|end|>\n 12 don't"


def written(config: Any, folder: Path) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        # New ones are 0 and 1, which hides where they go.
        if value.ndim == 1:
            torch.nn.init.normal_(value, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_is_read_back_as_the_model_with_its_tokens(kind: str, dtype: Any, tmp_path: Path):
    model = written(KINDS[kind], tmp_path / "own")
    found = export(model, tmp_path / "out", "gguf", dtype, 1 << 40)
    (file,) = found.files
    assert file == f"own-{'F32' if dtype == 'float32' else 'BF16'}.gguf"
    own, fresh = load(model), load(tmp_path / "out" / file)
    if dtype == "bfloat16":
        for name, value in own.state_dict().items():
            if value.ndim > 1:
                value.copy_(value.to(torch.bfloat16))
            assert torch.equal(value, fresh.state_dict()[name]), name
    torch.testing.assert_close(logits(fresh), logits(own), rtol=0, atol=1e-4)
    ours, theirs = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file=file)
    assert theirs.encode(TEXT) == ours.encode(TEXT)
    assert (theirs.chat_template, theirs.eos_token, theirs.pad_token) == (
        ours.chat_template,
        "<|end|>",
        "<|endoftext|>",
    )


def test_bfloat16_in_several_files_has_an_index_and_loads_as_the_model(tmp_path: Path):
    model = written(KINDS["llama"], tmp_path / "own")
    found = export(model, tmp_path / "out", "safetensors", "bfloat16", 60_000)
    files = [name for name in found.files if name.endswith(".safetensors")]
    assert len(files) > 2
    assert set(
        json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"].values()
    ) == set(files)
    for name in files:
        with safe_open(tmp_path / "out" / name, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert 0 < abs(found.exported_loss - found.loss) < 0.1
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert fresh.dtype == torch.bfloat16
    for name, value in load(model).state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value.to(torch.bfloat16)), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(TEXT) == tiny_tokenizer().encode(TEXT)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (MistralConfig(**SIZES, vocab_size=400), "a model of the kind mistral: only llama, qwen2, qwen3 are written"),
        (LlamaConfig(**SIZES, vocab_size=400, attention_bias=True), "biases that others of its kind do not have"),
        (
            LlamaConfig(
                **SIZES, vocab_size=400, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
            ),
            "rotary positions of the type linear",
        ),
        (Qwen3Config(**SIZES, vocab_size=400, head_dim=32), "heads of 32 are not read back"),
        (Qwen2Config(**SIZES, vocab_size=400, use_sliding_window=True, max_window_layers=0), "a sliding window"),
    ],
)
def test_other_kinds_are_no_gguf(config: Any, complaint: str, tmp_path: Path):
    model = written(config, tmp_path / "own")
    with pytest.raises(UserError, match=complaint):
        export(model, tmp_path / "out", "gguf", "bfloat16", 1 << 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_words_are_split_as_llama_cpp_does_or_the_tokenizer_is_refused():
    def found(*steps: Any, kind: str = "BPE") -> str:
        core = json.loads(tiny_tokenizer().backend_tokenizer.to_str()) | {"model": {"type": kind}}
        step = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
        core["pre_tokenizer"] = json.loads(step.__getstate__())
        return _word_splitting(core)

    level, bare = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel(False, use_regex=False)
    assert found(level) == "gpt-2"
    assert found(pre_tokenizers.Digits(individual_digits=True), level) == "smollm"
    for pattern, name in _SPLITS.items():
        assert found(pre_tokenizers.Split(Regex(pattern), "isolated"), bare) == name
        # The expression is one that the tokenizers of these models can run.
        split = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str("It's 1234")
        assert [word for word, _ in split][:2] == ["It", "'s"]
    for steps in ([pre_tokenizers.Whitespace()], [pre_tokenizers.Split(Regex("a"), "isolated"), bare], [bare]):
        with pytest.raises(UserError, match=r"llama\.cpp would make other tokens"):
            found(*steps)
    with pytest.raises(UserError, match="a tokenizer of the kind WordPiece"):
        found(level, kind="WordPiece")


def test_a_model_of_a_run_is_proved_on_its_held_out_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from pipelines.corpus.tokens.shards import write_shard

    run = tmp_path / "run"
    for name in ("base", "sft"):
        write_tiny_model(run / name, seed=0, end_id=4)
        (run / name / "manifest.json").write_text("{}")
    (run / "recipe.yaml").write_text("")
    rows = {"input_ids": IDS.repeat(3, 1).numpy().astype("int32")}
    rows |= {"document_ids": 0 * rows["input_ids"], "loss_mask": rows["input_ids"] > 20}
    write_shard(run / "sft" / "shards" / "held_out" / "shard-00000.parquet", rows)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--to", str(tmp_path / "out")])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"{run / 'sft'} in bfloat16: ")
    assert re.search(r"the loss on held-out rows is 1\d\.\d+, and was 1\d\.\d+$", said)
    assert not export(run, tmp_path / "base", "gguf", "float32", 1 << 40, "base").held_out


def test_a_model_that_cannot_be_exported_is_refused_in_one_line(tmp_path: Path):
    model = written(KINDS["llama"], tmp_path / "own")
    write_tiny_reward_model(tmp_path / "reward", 0.0, 1.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    for source, name, complaint in (
        (model, None, "is there already"),
        (tmp_path, None, "is neither a run folder nor a model"),
        (model, "sft", "is no run folder"),
        (tmp_path / "run", None, "has no model yet"),
        (tmp_path / "run", "policy", "has no policy yet"),
        (tmp_path / "reward", None, "is no whole language model: it has no lm_head.weight"),
    ):
        out = tmp_path if complaint == "is there already" else tmp_path / "out"
        with pytest.raises(UserError, match=complaint):
            export(source, out, "safetensors", "bfloat16", 1 << 40, name)
        assert not (tmp_path / "out").exists()


def test_an_export_that_is_another_model_fails_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = written(KINDS["llama"], tmp_path / "own")
    # Llama's rotation left out, as by a wrong mapping of names or of dimensions.
    monkeypatch.setattr("pipelines.gguf_format._rotated", lambda *found: found[1])
    with pytest.raises(StageError, match="is not the one that was trained"):
        export(model, tmp_path / "out", "gguf", "float32", 1 << 40)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
