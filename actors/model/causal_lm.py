"""The causal language model: built, loaded, checked and saved, its hidden states and its losses over packed rows."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from actors.compat import forget_quantization
from actors.model import lora
from actors.model.attention.packed import (
    attention_mask_for,
    attention_window,
    has_one_document_per_row,
    position_ids_within_documents,
)
from actors.model.chunked_cross_entropy import summed_loss, tied_head_and_embeddings, token_losses
from actors.model.parts import has_known_parts, trunk
from actors.model.sharding.weights import empty_model, first_layers, is_empty, is_shared, make_real
from cluster.errors import UserError, first_line
from cluster.recipe.base import Precision
from cluster.recipe.model import Model
from cluster.run.atomic import write_json
from cluster.runtime.memory import LOGITS_AT_ONCE, shape_of
from cluster.runtime.start_model import EXPERTS

# Kinds of layers that attend to nothing but what the mask of a packed row allows.
MASKED_LAYERS = {"full_attention", "sliding_attention"}
# The number of positions in most configurations, and of GPT-2's kind, MPT, and CodeGen.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
# Tokens of the shorter text of a row in which a model's window is tried.
PROBED = 8
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
        # transformers would draw them anew.
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
    _check_layers(loaded.config, model)
    require_positions(loaded.config, model.context, str(model.start_from))
    if is_empty(loaded):
        _check_first_layers(loaded, model)
    else:
        _check_logits(loaded, str(model.start_from))
        _check_packing(loaded, str(model.start_from))
        _check_window(loaded, model)
    grow_embeddings(loaded, tokenizer, seed)
    return loaded


def require_positions(config: Any, context: int, name: str) -> None:
    """Refuses a model that is made for shorter texts than `model.context`.

    Raises:
        UserError: it is.
    """
    # A model without a limit, such as one with ALiBi, names none.
    positions = next((limit for field in POSITIONS if (limit := getattr(config, field, None))), context)
    if positions < context:
        raise UserError(f"model.context {context} is more than the {positions} positions of {name}")


def _check_first_layers(empty: Any, model: Model) -> None:
    """Checks what computing shows of a model by its first layers; of workers that share it, the first does."""
    found = [""]
    if not is_shared() or dist.get_rank() == 0:
        first = first_layers(empty)
        try:
            _check_logits(first, str(model.start_from))
            _check_packing(first, str(model.start_from))
            _check_window(first, model)
        except UserError as error:
            found = [str(error)]
    if is_shared():
        dist.broadcast_object_list(found, src=0)
    if found[0]:
        raise UserError(found[0])


def _check_layers(config: Any, model: Model) -> None:
    """Refuses layers that do not obey the mask of a packed row: one that has a state would carry it from text to
    text."""
    # RecurrentGemma's are called block_types.
    layers = set(getattr(config, "layer_types", None) or getattr(config, "block_types", None) or ())
    if others := sorted(layers - MASKED_LAYERS):
        raise UserError(
            f"{_kind(config, model.start_from)} has layers of the kind {', '.join(others)}, which do not keep the "
            "texts of a row apart: start from one that has attention alone"
        )


@torch.no_grad()
def _check_window(model: Any, settings: Model) -> None:
    """Refuses rows longer than the window of some layers, unless these keep to it in a packed row too."""
    window = attention_window(model.config)
    if window is None or window >= settings.context:
        return
    ids = torch.arange(window + PROBED).remainder(model.get_input_embeddings().num_embeddings).unsqueeze(0)
    documents = torch.zeros_like(ids)
    documents[:, :PROBED] = 1
    longer = torch.cat([ids[:, :PROBED], ids], 1), torch.cat([documents[:, :PROBED], 2 * torch.ones_like(ids)], 1)
    try:
        packed = last_hidden_states(model, *longer)[:, PROBED:]
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        packed, reason = torch.zeros(()), first_line(error)
    else:
        reason = "they attend to more in a row of several texts"
    alone = last_hidden_states(model, ids)
    if packed.shape != alone.shape or not torch.allclose(packed, alone, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"model.context {settings.context} is more than the {window} tokens that layers of {settings.start_from} "
            f"attend to, and rows cannot be longer than that ({reason}): set it to {window} or less"
        )


@torch.no_grad()
def _check_logits(model: Any, name: str) -> None:
    """Refuses a model whose logits are others than those of `output_logits`, on which it would be trained."""
    kind = _kind(model.config, name)
    if not has_known_parts(model):
        raise UserError(f"{kind} is not made of layers and an output head: start from one of another kind")
    ids = torch.arange(8).unsqueeze(0)
    try:
        expected, found = model(input_ids=ids).logits, output_logits(model, last_hidden_states(model, ids))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{kind} computes no logits of tokens alone ({first_line(error)})") from error
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{kind} does more to its logits than to scale them, such as to cap them, and would be trained on others "
            "than it is served with: start from one of another kind"
        )


@torch.no_grad()
def _check_packing(model: Any, name: str) -> None:
    """Refuses a model whose states of a text depend on what stands behind it, or beside it in a packed row."""
    kind, size = _kind(model.config, name), model.get_input_embeddings().num_embeddings
    ids = torch.arange(2 * PROBED).remainder(size).unsqueeze(0)
    documents = torch.arange(2 * PROBED).div(PROBED, rounding_mode="floor").unsqueeze(0)
    parts = [last_hidden_states(model, part) for part in ids.split(PROBED, 1)]
    if not torch.allclose(last_hidden_states(model, ids)[:, :PROBED], parts[0], rtol=1e-3, atol=1e-4):
        raise UserError(f"{kind} attends to what follows a token: start from one that predicts the next token")
    try:
        packed = last_hidden_states(model, ids, documents)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{kind} cannot compute several texts in a row ({first_line(error)})") from error
    if not torch.allclose(packed, torch.cat(parts, 1), rtol=1e-3, atol=1e-4):
        raise UserError(f"{kind} does not keep the texts of a row apart: start from one of another kind")


def require_no_experts(config: Any, name: str | None) -> None:
    """Refuses a mixture of experts, whose weights RLHF cannot give to its rollout engines.

    The learner holds all experts of a layer as one tensor, under a name that no engine knows. By their own names vLLM
    0.32 takes them without an error on CPUs, and then computes with neither the old weights nor the new ones.

    Raises:
        UserError: the model has experts.
    """
    if any((getattr(config, attribute, None) or 0) > 1 for attribute in EXPERTS):
        raise UserError(
            f"{_kind(config, name)} is a mixture of experts, whose weights RLHF cannot give to the rollout engines: "
            "start from a dense model, or train this one by DPO (section dpo)"
        )


def _kind(config: Any, name: str | None) -> str:
    return f"{name}: a model of the kind {config.model_type}"


def unused_auxiliary_loss(config: Any) -> str:
    """Says that the loss which balances a mixture of experts is not trained on; empty where there is none.

    It is no sum over tokens: with it, the loss of a batch would depend on how it is split into micro-batches.
    """
    weight = getattr(config, "router_aux_loss_coef", None)
    if not weight or not any((getattr(config, attribute, None) or 0) > 1 for attribute in EXPERTS):
        return ""
    return f"the auxiliary loss that balances the experts (router_aux_loss_coef {weight}) is not trained on"


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
    embeddings were trained beside them, without which they are nothing.

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


def last_hidden_states(
    model: Any, input_ids: Tensor, document_ids: Tensor | None = None, embeddings: Tensor | None = None
) -> Tensor:
    """Computes the last hidden states. Without `document_ids`, a row is one document and padding is at its right end.

    Args:
        input_ids: [B, T].
        document_ids: [B, T], the document of each token within its row; PAD_DOCUMENT_ID where a row is filled up.
        embeddings: [B, T, H], those of the ids, if they have been looked up.

    Returns:
        [B, T, H].
    """
    kwargs = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    # Without a mask half of the attention is not computed: on a CPU 5 % of a step with 135M parameters.
    if document_ids is None or (document_ids.is_cpu and has_one_document_per_row(document_ids)):
        return trunk(model)(**kwargs, use_cache=False).last_hidden_state
    return trunk(model)(
        **kwargs,
        attention_mask=attention_mask_for(model, document_ids),
        position_ids=position_ids_within_documents(document_ids),
        use_cache=False,
    ).last_hidden_state


def output_logits(model: Any, states: Tensor) -> Tensor:
    """Computes the logits of the next token. [N, H] -> [N, V]."""
    logits: Tensor = model.get_output_embeddings()(scaled_states(model, states))
    return logits


def scaled_states(model: Any, states: Tensor) -> Tensor:
    """Multiplies states by the factor of the model's logits (Cohere, Granite), which is the same for a head without
    bias. [N, H] -> [N, H]."""
    factor, divisor = (getattr(model.config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    scale = factor / divisor
    return states if scale == 1.0 else states * scale


def next_token_losses(model: Any, input_ids: Tensor, loss_mask: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Computes the cross-entropy in nats of each target token given what comes before it, in float32.

    Args:
        input_ids: [B, T].
        loss_mask: bool [B, T]; whether token t is a target. The first token of a document must not be.
        document_ids: as in `last_hidden_states`.

    Returns:
        [N], N the number of targets. Logits are made for these alone, and at most LOGITS_AT_ONCE at a time.
    """
    states, targets = _predictors(model, input_ids, loss_mask, document_ids)
    return token_losses(model.get_output_embeddings(), states, targets, LOGITS_AT_ONCE[states.device.type])


def next_token_loss(
    model: Any, input_ids: Tensor, loss_mask: Tensor, document_ids: Tensor | None = None, compiled: bool = False
) -> Tensor:
    """Computes the sum of `next_token_losses`, to be trained on; `compiled` is that of `summed_loss`."""
    head, embeddings = tied_head_and_embeddings(model, input_ids) or (model.get_output_embeddings(), None)
    states, targets = _predictors(model, input_ids, loss_mask, document_ids, embeddings)
    return summed_loss(head, states, targets, LOGITS_AT_ONCE[states.device.type], compiled)


def _predictors(
    model: Any,
    input_ids: Tensor,
    loss_mask: Tensor,
    document_ids: Tensor | None,
    embeddings: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the state that predicts each target, and the target's id: [N, H] and [N]."""
    states = last_hidden_states(model, input_ids, document_ids, embeddings)
    targets = loss_mask[:, 1:]
    return scaled_states(model, states[:, :-1][targets]), input_ids[:, 1:][targets]


def bits_per_byte(loss: float, tokens: float, text_bytes: float) -> float:
    """Converts a loss in nats a token over so many tokens to bits a byte of UTF-8, comparable between tokenizers."""
    return loss * tokens / math.log(2) / text_bytes
