"""Writes a language model to one GGUF file, llama.cpp's format, which Ollama and LM Studio read too.

Names of tensors and fields are those of the package gguf, which llama.cpp's own converter uses
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map
from gguf.constants import MODEL_ARCH
from gguf.quants import quantize
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from actors.model.tokenizer import begin_of_text
from cluster.errors import UserError
from cluster.recipe.base import Precision

KINDS = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
_TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
# The size of Qwen 3's heads: transformers assumes it whatever the GGUF file says, and all published models have it.
_QWEN3_HEAD = 128
# llama.cpp's names of the expressions that split text into words, before bytes are merged to tokens.
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {rf"(?i:{_WORD}\p{{N}}{{1,3}}{_REST}": "llama-bpe", rf"(?i:{_WORD}\p{{N}}{_REST}": "qwen2"}


def write_gguf(model: Any, tokenizer: PreTrainedTokenizerBase, file: Path, precision: Precision) -> None:
    """Writes a model, its tokenizer and its chat template to one file; vectors stay in float32.

    Args:
        model: the model, in float32.
        precision: the precision of the matrices.

    Raises:
        UserError: the model or its tokenizer is of a kind that is not written.
    """
    _check_kind(model.config)
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    words = _word_splitting(fields)
    arch = KINDS[model.config.model_type]
    kind, file_type = _TYPES[precision]
    writer = GGUFWriter(file, model.config.model_type, use_temp_file=True)
    try:
        writer.add_file_type(file_type)
        _add_shape(writer, model.config)
        _add_tokenizer(writer, tokenizer, fields, words, model.get_input_embeddings().num_embeddings)
        names = get_tensor_name_map(arch, model.config.num_hidden_layers)
        for name, value in model.state_dict().items():
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise UserError(f"a model of the kind {model.config.model_type} has {name}, which GGUF has no name for")
            values = value.numpy()
            if model.config.model_type == "llama":
                values = _rotated(name, values, model.config)
            if values.ndim > 1 and precision != "float32":
                writer.add_tensor(found, quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(found, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check_kind(config: Any) -> None:
    kind, refused = config.model_type, ""
    if kind not in KINDS:
        refused = f"only {', '.join(KINDS)} are written as GGUF"
    elif config.rope_parameters.get("rope_type", "default") != "default":
        refused = f"rotary positions of the type {config.rope_parameters['rope_type']} are not written as GGUF"
    elif any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias")):
        refused = "biases that others of its kind do not have are not written as GGUF"
    elif "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        refused = "layers with a sliding window are not written as GGUF"
    elif config.hidden_act != "silu":
        refused = f"the activation {config.hidden_act} is not written as GGUF"
    elif kind == "qwen3" and config.head_dim != _QWEN3_HEAD:
        refused = f"heads of {config.head_dim} are not read back by transformers, which takes {_QWEN3_HEAD}"
    if refused:
        raise UserError(f"a model of the kind {kind}: {refused}; export it with --format safetensors")


def _word_splitting(fields: dict[str, Any]) -> str:
    """Returns llama.cpp's name for the way a tokenizer splits text into words.

    Args:
        fields: the fields of the tokenizer.json.

    Raises:
        UserError: it has none, and would make other tokens of a text.
    """
    steps = fields["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    plain = kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space") and fields["model"]["type"] == "BPE"
    if plain and kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if plain and kinds == ["Split", "ByteLevel"] and (name := _SPLITS.get(steps[0]["pattern"].get("Regex"))):
        return name
    raise UserError(
        f"a tokenizer of the kind {fields['model']['type']} that splits words by {', '.join(map(str, kinds))} is not "
        "written as GGUF: llama.cpp would make other tokens of a text; export it with --format safetensors"
    )


def _add_shape(writer: GGUFWriter, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, fields: dict[str, Any], words: str, rows: int
) -> None:
    """Adds the tokens, one for every row of the embeddings, and the ids of those that begin and end texts."""
    added, size = tokenizer.added_tokens_decoder, len(tokenizer)
    special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    types = [
        TokenType.UNUSED
        if number >= size
        else TokenType.CONTROL
        if number in special
        else TokenType.USER_DEFINED
        if number in added
        else TokenType.NORMAL
        for number in range(rows)
    ]
    tokens = [str(tokenizer.convert_ids_to_tokens(number)) for number in range(min(size, rows))]
    tokens += [f"[PAD{number}]" for number in range(len(tokens), rows)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in fields["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(bool(begin_of_text(tokenizer)))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _rotated(name: str, weight: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """Reorders a head's dimensions: llama.cpp rotates neighbors, transformers the two halves of a head."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
