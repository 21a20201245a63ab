"""Attention over packed rows, in which a document attends to itself alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from actors.compat import register_attention, repeat_heads, sdpa_attention
from actors.model.attention.blockwise import block_attention

PAD_DOCUMENT_ID = -1
ATTENTION_NAME = "triptych"
# The kind, in a configuration's layer_types, of layers that attend to a window.
WINDOWED = "sliding_attention"


def set_attention(model: Any) -> None:
    """Lets a model attend by the fastest kernel for its device and precision, which otherwise is PyTorch's.

    In bfloat16 on a CPU the kernel is `block_attention`. On a GPU it is FlashAttention's for texts laid end to end (Dao
    2023), which passes over keys that no token attends to; with a mask they would be computed.
    """
    register_attention(ATTENTION_NAME, _attention)
    model.set_attn_implementation(ATTENTION_NAME)


def attention_mask_for(model: Any, document_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """Returns the mask of packed rows in the form that the model's attention takes: `document_bounds` in bfloat16 on a
    GPU, else `document_mask`. Where some layers have a window that is shorter than the rows, a mask for each kind."""
    if document_ids.is_cuda and torch.is_autocast_enabled("cuda"):
        set_attention(model)
        # Each layer passes its own window to the kernel.
        mask = windowed = document_bounds(document_ids)
    else:
        mask = windowed = document_mask(document_ids)
    window = attention_window(model.config)
    if window is None or window >= document_ids.shape[1]:
        return mask
    if mask.dtype == torch.bool:
        windowed = mask & within_window(document_ids.shape[1], window, document_ids.device)
    kinds = set(getattr(model.config, "layer_types", None) or [WINDOWED])
    return windowed if kinds == {WINDOWED} else dict.fromkeys(kinds, mask) | {WINDOWED: windowed}


def attention_window(config: Any) -> int | None:
    """Returns the number of tokens that a layer attends to, its own included, if any layer is limited so."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", None) is False or (kinds and WINDOWED not in kinds):
        return None
    return getattr(config, "sliding_window", None)


def within_window(length: int, window: int, device: torch.device) -> Tensor:
    """Returns which keys are less than a window before their query. -> bool [length, length]."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1 - window)


def document_mask(document_ids: Tensor) -> Tensor:
    """Returns which keys a token of packed rows attends to: earlier ones of its document; padding attends to itself.

    Args:
        document_ids: [B, T], PAD_DOCUMENT_ID where a row is filled up.

    Returns:
        bool [B, 1, T, T].
    """
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    same = document_ids.unsqueeze(2) == document_ids.unsqueeze(1)
    itself = torch.eye(length, dtype=torch.bool, device=document_ids.device)
    real = (document_ids != PAD_DOCUMENT_ID).unsqueeze(1)
    return ((same & causal & real) | itself).unsqueeze(1)


def document_bounds(document_ids: Tensor) -> Tensor:
    """Returns where each of D documents begins, and the last one ends, in the rows laid end to end.

    The padding of a row counts as a document.

    Args:
        document_ids: [B, T].

    Returns:
        int32 [1, 1, 1, D + 1]: models pass a mask of four dimensions on as it is.
    """
    begins = torch.nonzero(_starts(document_ids).flatten()).flatten()
    return functional.pad(begins, (0, 1), value=document_ids.numel()).to(torch.int32).view(1, 1, 1, -1)


def has_one_document_per_row(document_ids: Tensor) -> bool:
    """Says whether every row holds a single document, and padding at its right end. [B, T] -> bool."""
    return bool(((document_ids == document_ids[:, :1]) | (document_ids == PAD_DOCUMENT_ID)).all())


def _starts(document_ids: Tensor) -> Tensor:
    """Marks the first token of each document in a row. [B, T] -> bool [B, T]."""
    first = torch.ones_like(document_ids, dtype=torch.bool)
    first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return first


def position_ids_within_documents(document_ids: Tensor) -> Tensor:
    """Returns positions that begin at 0 in every document of a packed row. [B, T] -> [B, T]."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return index - torch.where(_starts(document_ids), index, 0).cummax(dim=1).values


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Computes one layer's attention by the kernel that `set_attention` names. [B, heads, T, D] -> [B, T, heads, D]."""
    if _can_use_blocks(module, query, key, value, settings):
        return _block_attention(query, key, value, attention_mask, settings["scaling"]), None
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention(module, query, key, value, attention_mask, **settings)
    bounds, (rows, heads, length, size) = attention_mask.flatten(), query.shape
    # Rotary positions leave float32 under autocast, which does not know this operation.
    queries, keys, values = (x.transpose(1, 2).flatten(0, 1).to(torch.bfloat16) for x in (query, key, value))
    # The kernel takes heads of one size: those of the values are narrower in multi-head latent attention (DeepSeek).
    narrower = size - value.shape[-1]
    if narrower:
        values = functional.pad(values, (0, narrower))
    grouped, window = heads != key.shape[1], settings.get("sliding_window")
    attended = varlen_attn(
        queries,
        keys,
        values,
        bounds,
        bounds,
        length,
        length,
        scale=settings["scaling"],
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=grouped,
    )
    assert isinstance(attended, Tensor)
    return attended.view(rows, length, heads, size)[..., : size - narrower], None


def _can_use_blocks(module: Any, query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> bool:
    """Says whether `block_attention` can compute it: neither a step of generation, which has more keys than queries,
    nor bidirectional attention, nor one with dropout."""
    on_cpu = query.is_cpu and torch.is_autocast_enabled("cpu")
    same = query.shape[2:] == key.shape[2:] == value.shape[2:]
    return on_cpu and same and getattr(module, "is_causal", True) and not settings.get("dropout")


def _block_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    heads, length = query.shape[1:3]
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    shared = heads // key.shape[1]
    keys, values = repeat_heads(key, shared), repeat_heads(value, shared)
    attended = block_attention(*(x.to(torch.bfloat16) for x in (query, keys, values)), mask, scale)
    return attended.transpose(1, 2)
