"""Attention in bfloat16 on CPUs, a block of queries at a time.

The attention weights of a block stay in the cache, and keys after its last query are passed over. Weights are made
again for the gradient, so that memory grows with the tokens and not with their square (Dao et al. 2022). For 8 rows of
256 tokens with 15 heads of 64, forward and backward together, two cores take 21 ms so, and 44 with PyTorch's kernel
(2.11); for one row of 2,048 with 9 heads 58 and 94, or 155 where that has a mask. In float32 PyTorch's is the faster
one.

Scores are rounded to bfloat16, as in transformers' eager attention: results err by 0.3 % where PyTorch's kernel errs by
0.2, gradients by as much as its own. In 32 bits they take a third more time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from actors.compat import softmax_backward

# Queries of a block.
QUERIES = 256
# Attention weights of a block: 2 MB.
WEIGHTS = 1 << 20


@torch.library.custom_op("triptych::block_attention", mutates_args=())
def block_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Computes softmax(scale · Q Kᵀ) V over the keys that the mask leaves.

    An operation of its own, which PyTorch's compiler leaves whole.

    Args:
        query: [B, heads, T, D]; so are key and value.
        mask: bool [B or 1, 1, T, T], which keys a query attends to: none after itself.

    Returns:
        [B, heads, T, D].
    """
    attended = _empty(query)
    for rows, queries, keys in _blocks(query):
        weights = _weights(query[rows, :, queries], key[rows, :, keys], _cut(mask, rows, queries, keys), scale)
        attended[rows, :, queries] = weights @ value[rows, :, keys]
    return attended


@block_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return _empty(query)


@torch.library.custom_op("triptych::block_attention_gradients", mutates_args=())
def block_attention_gradients(
    slopes: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients with regard to query, key and value from `slopes`, that with regard to the result of
    `block_attention`."""
    of_query = _empty(query)
    # Sums over several blocks are kept in 32 bits.
    dtype = query.dtype if query.shape[2] <= QUERIES else torch.float32
    of_key, of_value = (torch.zeros_like(of_query, dtype=dtype) for _ in range(2))
    for rows, queries, keys in _blocks(query):
        block, own = query[rows, :, queries], slopes[rows, :, queries]
        weights = _weights(block, key[rows, :, keys], _cut(mask, rows, queries, keys), scale)
        of_value[rows, :, keys] += weights.mT @ own
        of_weights = own @ value[rows, :, keys].mT
        of_scores = softmax_backward(of_weights, weights).mul_(scale)
        of_query[rows, :, queries] = of_scores @ key[rows, :, keys]
        of_key[rows, :, keys] += of_scores.mT @ block
    return of_query, of_key.to(query.dtype), of_value.to(query.dtype)


@block_attention_gradients.register_fake
def _(_slopes: Tensor, query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(query), _empty(query), _empty(query)


def _save_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (PyTorch names it)
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
    return *block_attention_gradients(slopes, *ctx.saved_tensors, ctx.scale), None, None


block_attention.register_autograd(_backward, setup_context=_save_context)


def _blocks(query: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yields rows, a block of their queries, and the keys up to the last of these."""
    rows, heads, length, _ = query.shape
    together = max(1, WEIGHTS // (heads * length * min(length, QUERIES)))
    for row in range(0, rows, together):
        for begin in range(0, length, QUERIES):
            end = min(begin + QUERIES, length)
            yield slice(row, row + together), slice(begin, end), slice(0, end)


def _cut(mask: Tensor, rows: slice, queries: slice, keys: slice) -> Tensor:
    return mask[rows if len(mask) > 1 else slice(None), :, queries, keys]


def _weights(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Computes the attention weights. [B, heads, Q, D], [B, heads, K, D] -> [B, heads, Q, K]."""
    rows, heads, queries, _ = query.shape
    keys = key.shape[2]
    # Not infinite: the weights of a query that is left no key would not be numbers.
    left_out = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    bias = left_out[0] if len(mask) == 1 else left_out.expand(-1, heads, -1, -1).reshape(-1, queries, keys)
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
    return scores.softmax(-1).view(rows, heads, queries, keys)


def _empty(query: Tensor) -> Tensor:
    """Allocates a tensor of the query's shape with tokens before heads in memory, as models take heads apart."""
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
