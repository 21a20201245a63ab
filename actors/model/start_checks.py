"""Checks of a model that training starts from, by the needs of packed rows, losses and rollout engines."""

from typing import Any

import torch
import torch.distributed as dist

from actors.model.attention.packed import attention_window
from actors.model.forward import last_hidden_states, output_logits
from actors.model.parts import has_known_parts
from actors.model.sharding.weights import first_layers, is_empty, is_shared
from cluster.errors import UserError, first_line
from cluster.recipe.model import Model
from cluster.runtime.start_model import EXPERTS

# Kinds of layers that attend only to tokens that the mask of a packed row allows.
MASKED_LAYERS = {"full_attention", "sliding_attention"}
# The number of positions in most configurations, and of GPT-2's kind, MPT, and CodeGen.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
# Tokens of the shorter text of a row in which a model's window is tried.
PROBED = 8


def check_start_model(loaded: Any, model: Model) -> None:
    """Checks that a model can be trained on packed rows of `model.context` tokens.

    Raises:
        UserError: it is made for shorter texts, does not keep the texts of a packed row apart, or has another output
            than `output_logits` gives.
    """
    _check_layers(loaded.config, model)
    require_positions(loaded.config, model.context, str(model.start_from))
    if is_empty(loaded):
        _check_first_layers(loaded, model)
    else:
        _check_computed(loaded, model)


def _check_computed(model: Any, settings: Model) -> None:
    """Computes some rows with a model, and checks its logits, its packing and its attention windows by them."""
    _check_logits(model, str(settings.start_from))
    _check_packing(model, str(settings.start_from))
    _check_window(model, settings)


def require_positions(config: Any, context: int, name: str) -> None:
    """Refuses a model that is made for shorter texts than `model.context`.

    Raises:
        UserError: the model has fewer than `context` positions.
    """
    # A model without a limit, such as one with ALiBi, names none.
    positions = next((limit for field in POSITIONS if (limit := getattr(config, field, None))), context)
    if positions < context:
        raise UserError(f"model.context {context} is more than the {positions} positions of {name}")


def _check_first_layers(empty: Any, model: Model) -> None:
    """Applies `_check_computed` to a model's first layers; of workers that share it, the first does so for all."""
    found = [""]
    if not is_shared() or dist.get_rank() == 0:
        first = first_layers(empty)
        try:
            _check_computed(first, model)
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
    """Refuses a model whose states of a text depend on later tokens, or on the other texts of a packed row."""
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
