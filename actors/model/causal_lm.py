"""The language model: built or loaded, and its losses over packed rows."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from actors.model import lora
from actors.model.attention import mask_for, one_document_a_row, restarting_positions
from actors.model.chunked_cross_entropy import summed_loss, tied_words, token_losses
from cluster.errors import UserError, first_line
from cluster.recipe.model import Model
from cluster.runtime.memory import LOGITS_AT_ONCE, shape_of

# Layers that attend to what the mask of a packed row has them attend to.
ATTENDING = {"full_attention", "sliding_attention"}


def build(model: Model, seed: int, end_of_turn: int, padding: int) -> LlamaForCausalLM:
    """A model with random weights, N(0, 0.02), tied embeddings."""
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


def load(path: str | Path) -> Any:
    """A causal language model in float32, from a Hugging Face directory or a GGUF file. Pickled weights are refused.

    Raises:
        UserError: there is no such model, it has no safetensors, or its file is damaged.
    """
    given = place(path)
    try:
        language = AutoModelForCausalLM.from_pretrained(
            **given, dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot load a model from {path}: {first_line(error)}") from error
    if "gguf_file" in given:
        forget_quantization(language)
    return language


def start(model: Model, tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    """The model that `model.start_from` names, with a place for every token of the tokenizer.

    Rows for new tokens are drawn from `seed`, around the mean of those that are there (Hewitt 2021).

    Raises:
        UserError: it cannot be loaded, is made for shorter texts than `model.context`, does not keep the texts of a
            packed row apart, or its output is more than `output_logits` gives.
    """
    language = load(str(model.start_from))
    _check_layers(language.config, model)
    positions = language.config.max_position_embeddings
    if positions < model.context:
        raise UserError(f"model.context {model.context} is more than the {positions} positions of {model.start_from}")
    _check_logits(language, str(model.start_from))
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        torch.manual_seed(seed)
        language.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    return language


def _check_layers(config: Any, model: Model) -> None:
    """The mask of a packed row goes to every layer: one that has a state would carry it from text to text, and one that
    has a window would see beyond it."""
    # RecurrentGemma's are called block_types.
    layers = set(getattr(config, "layer_types", None) or getattr(config, "block_types", None) or ())
    if others := sorted(layers - ATTENDING):
        raise UserError(
            f"{_kind(config, model.start_from)} has layers of the kind {', '.join(others)}, which do not keep the "
            "texts of a row apart: start from one that has attention alone"
        )
    window = getattr(config, "sliding_window", None)
    uses_window = getattr(config, "use_sliding_window", None) is not False
    if window and uses_window and (not layers or "sliding_attention" in layers) and window < model.context:
        raise UserError(
            f"model.context {model.context} is more than the {window} tokens that layers of {model.start_from} attend "
            f"to: set it to {window} or less"
        )


@torch.no_grad()
def _check_logits(language: Any, name: str) -> None:
    kind = _kind(language.config, name)
    if not (hasattr(language, "lm_head") and hasattr(language, "model") and hasattr(language.model, "layers")):
        raise UserError(f"{kind} is not made of model.layers and lm_head: start from one of another kind")
    ids = torch.arange(8).unsqueeze(0)
    expected, found = language(input_ids=ids).logits, output_logits(language, hidden_states(language, ids))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{kind} does more to its logits than to scale them, such as to cap them, and would be trained on others "
            "than it is served with: start from one of another kind"
        )


def _kind(config: Any, name: str | None) -> str:
    return f"{name}: a model of the kind {config.model_type}"


def output_logits(model: Any, states: Tensor) -> Tensor:
    """What the model says of the next token. [N, H] -> [N, V]."""
    found: Tensor = model.lm_head(_scaled(model, states))
    return found


def _scaled(model: Any, states: Tensor) -> Tensor:
    """Times what the model multiplies its logits by (Cohere, Granite), which for a head without bias is the same."""
    times, divided_by = (getattr(model.config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    scale = times / divided_by
    return states if scale == 1.0 else states * scale


def end_with(language: Any, token: int) -> None:
    """Sets the token with which the model ends what it writes."""
    language.config.eos_token_id = token
    language.generation_config.eos_token_id = token


def save(model: Any, tokenizer: Any, path: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Writes a Hugging Face directory that transformers and vLLM load as it is: adapters are merged into the model, and
    below it on their own.

    Args:
        weights: the model's state dictionary, whole, where the model itself does not hold it.
    """
    weights = model.state_dict() if weights is None else weights
    if lora.has_adapters(model):
        lora.save_adapter(model, weights, path / lora.FOLDER)
        weights = lora.merged(model, weights)
    model.save_pretrained(path, state_dict=weights)
    tokenizer.save_pretrained(path)


def hidden_states(
    model: Any, input_ids: Tensor, document_ids: Tensor | None = None, embeddings: Tensor | None = None
) -> Tensor:
    """Last hidden states [B, T, H]. Without `document_ids`, a row is one document and padding is at its right end.
    `embeddings` are those of the ids, [B, T, H], if they have been looked up."""
    words = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    # Without a mask half of the attention is not computed: on a CPU 5 % of a step with 135M parameters.
    if document_ids is None or (document_ids.is_cpu and one_document_a_row(document_ids)):
        return model.model(**words, use_cache=False).last_hidden_state
    return model.model(
        **words,
        attention_mask=mask_for(model, document_ids),
        position_ids=restarting_positions(document_ids),
        use_cache=False,
    ).last_hidden_state


def next_token_losses(model: Any, input_ids: Tensor, trained: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Cross-entropy of each trained token given what comes before it, in float32.

    Args:
        input_ids: [B, T].
        trained: bool [B, T]; whether token t is a target. The first token of a document must not be.
        document_ids: as in `hidden_states`.

    Returns:
        [N], N the number of trained tokens. Logits are made for these alone, and at most LOGITS_AT_ONCE at a time.
    """
    states = hidden_states(model, input_ids, document_ids)
    states, targets = _predicted(model, states, input_ids, trained)
    return token_losses(model.lm_head, states, targets, LOGITS_AT_ONCE[states.device.type])


def next_token_loss(
    model: Any, input_ids: Tensor, trained: Tensor, document_ids: Tensor | None = None, compiled: bool = False
) -> Tensor:
    """The sum of `next_token_losses`, to be trained on: `compiled` is as in `summed_loss`."""
    head, embeddings = tied_words(model, input_ids) or (model.lm_head, None)
    states = hidden_states(model, input_ids, document_ids, embeddings)
    states, targets = _predicted(model, states, input_ids, trained)
    return summed_loss(head, states, targets, LOGITS_AT_ONCE[states.device.type], compiled)


def _predicted(model: Any, states: Tensor, input_ids: Tensor, trained: Tensor) -> tuple[Tensor, Tensor]:
    """Of every trained token the state that predicts it and its id, [N, H] and [N]."""
    targets = trained[:, 1:]
    return _scaled(model, states[:, :-1][targets]), input_ids[:, 1:][targets]


def bits_per_byte(loss: float, tokens: float, text_bytes: int) -> float:
    """Loss in nats a token, over how many tokens, as bits a byte of UTF-8: comparable between tokenizers."""
    return loss * tokens / math.log(2) / text_bytes


# Models in one GGUF file, as llama.cpp reads them; transformers turns their weights back into float32.
def place(model: str | Path) -> dict[str, str]:
    """What `from_pretrained` takes: for a Hugging Face folder, a Hub name, or a path that ends in .gguf."""
    path = Path(model)
    if path.suffix != ".gguf":
        return {"pretrained_model_name_or_path": str(model)}
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def forget_quantization(model: Any) -> None:
    """Makes a model that was read from a GGUF file one like any other: transformers would refuse to save it."""
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
