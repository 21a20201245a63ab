"""The causal language model: built, loaded from files, given embeddings for new tokens, and saved."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from actors.compat import forget_quantization
from actors.model import lora
from actors.model.sharding.weights import empty_model, is_shared, make_real
from actors.model.start_checks import check_start_model
from cluster.errors import UserError, first_line
from cluster.recipe.base import Precision
from cluster.recipe.model import Model
from cluster.run.atomic import write_json
from cluster.runtime.memory import shape_of

# Stages leave one file of weights, whose checksum is the model's; workers that share a model leave several.
SHARD_BYTES = 1 << 50


def build(model: Model, seed: int, end_of_turn: int, padding: int) -> LlamaForCausalLM:
    """Builds a model with random weights, N(0, 0.02), and tied embeddings."""
    shape = shape_of(model)
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=model.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_of_turn,
            pad_token_id=padding,
        )
    )


def load(path: str | Path, by_parts: bool | None = None) -> Any:
    """Loads a causal language model in float32, from a Hugging Face directory or a GGUF file, never from a pickle.

    Args:
        path: the folder, the file, or a name on the Hub.
        by_parts: whether to return an `empty_model` where the files allow it; by default one of several workers gets
            one, which is filled when it is sharded.

    Raises:
        UserError: there is no such model, it has no safetensors, its file is damaged, or it lacks weights, such as a
            reward model's that has no output head.
    """
    kwargs = from_pretrained_kwargs(path)
    try:
        if by_parts is None:
            by_parts = is_shared()
        if by_parts and (empty := empty_model(AutoModelForCausalLM, path)) is not None:
            return empty
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **kwargs,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot load a model from {path}: {first_line(error)}") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers would draw them at random.
        raise UserError(f"{path} is no whole language model: it has no {missing[0]}")
    if "gguf_file" in kwargs:
        forget_quantization(model)
    return model


def from_pretrained_kwargs(model: str | Path) -> dict[str, str]:
    """Returns the arguments of `from_pretrained` for a Hugging Face folder, a name at the Hub, or a path to a .gguf.

    GGUF is llama.cpp's format of models in one file; transformers turns its weights back into float32.
    """
    path = Path(model)
    if path.suffix != ".gguf":
        return {"pretrained_model_name_or_path": str(model)}
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def load_for_training(model: Model, tokenizer: PreTrainedTokenizerBase, seed: int, by_parts: bool | None = None) -> Any:
    """Loads the model that `model.start_from` names as `load` does, and gives it an embedding for every token of the
    tokenizer.

    Raises:
        UserError: it cannot be loaded, is made for shorter texts than `model.context`, does not keep the texts of a
            packed row apart, or has another output than `output_logits` gives.
    """
    loaded = load(str(model.start_from), by_parts)
    check_start_model(loaded, model)
    grow_embeddings(loaded, tokenizer, seed)
    return loaded


def set_end_token(model: Any, token: int) -> None:
    """Sets the token with which the model ends its output. Where it ended with one of several, the others still do."""
    before = model.generation_config.eos_token_id
    others = [other for other in before if other != token] if isinstance(before, list) else []
    model.config.eos_token_id = token
    model.generation_config.eos_token_id = [token, *others] if others else token


def grow_embeddings(model: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Gives a model an embedding for every token of the tokenizer. New ones are drawn from `seed`, around the mean of
    the others (Hewitt 2021)."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        make_real(model, [model.get_input_embeddings().weight, model.get_output_embeddings().weight])
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def save(
    model: Any,
    tokenizer: Any,
    path: Path,
    weights: dict[str, Tensor] | None = None,
    precision: Precision = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a Hugging Face directory that transformers and vLLM load as it is.

    Adapters are merged into the model, and written a second time on their own, into a folder below it, unless
    embeddings were trained beside them, without which they are useless.

    Args:
        weights: the model's state dictionary of full tensors, where the model itself does not hold it.
        precision: of the weights in the folder; adapters on their own stay in float32.
        shard_bytes: the most bytes of a file; with several there is an index.
    """
    weights = model.state_dict() if weights is None else weights
    if lora.has_adapters(model):
        if not model.trained_rows:
            lora.save_adapter(model, weights, path / lora.FOLDER)
        weights = lora.merged_weights(model, weights)
    weights = weights if precision == "float32" else _rounded(weights)
    model.save_pretrained(path, state_dict=weights, max_shard_size=shard_bytes)
    if precision != "float32":
        # transformers writes the precision of the model in memory.
        config = path / "config.json"
        write_json(config, json.loads(config.read_text(encoding="utf-8")) | {"dtype": precision})
    tokenizer.save_pretrained(path)


def _rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounds weights to bfloat16. Tied ones stay one tensor."""
    rounded: dict[int, Tensor] = {}
    for value in weights.values():
        if value.data_ptr() not in rounded:
            rounded[value.data_ptr()] = value.to(torch.bfloat16) if value.is_floating_point() else value
    return {name: rounded[value.data_ptr()] for name, value in weights.items()}
