"""The digest of the weights that a live vLLM model computes with, whole or divided among the workers of an engine."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.compat import (
    Division,
    TensorParallel,
    counted_rows,
    division_of,
    input_width,
    linear_layers,
    live_weight,
    output_heads,
    tensor_parallel,
)
from actors.rollout.weights import STRIPES, as_matrix, columns, hash_rows, module_of, sum_hashes

Digest = dict[str, int]


def live_digest(model: nn.Module, stripe: int | None = None) -> Digest:
    """Returns `weights.digest` of the weights that a vLLM model computes with at this moment, or of a stripe of their
    columns.

    Of an engine with several workers every one has to call it, and all return the digest of the whole: rows that are
    divided among the workers are added up, parts of rows are hashed together, and copies of one weight count once; a
    copy that differs changes the digest. A weight that a CPU kernel holds in a format of its own is read back from the
    kernel: see `live_weight`.
    """
    group = tensor_parallel()
    parts: Digest = defaultdict(int)
    copies: Digest = defaultdict(int)
    for name, layer, weight, first_column in _live_weights(model, stripe, group):
        division = division_of(layer, name) if group.size > 1 else Division.ROWS
        hashes = hash_rows(weight, first_column)
        if division is Division.COLUMNS:
            hashes = hashes.cpu()
            dist.all_reduce(hashes, group=group.workers)
            # Every worker then has the sum.
            division = Division.COPIES
        if division is Division.ROWS:
            parts[module_of(name)] += sum_hashes(hashes[counted_rows(layer, group)])
        else:
            copies[module_of(name)] += sum_hashes(hashes)
    found = [(dict(parts), dict(copies))]
    if group.size > 1:
        found *= group.size
        dist.all_gather_object(found, (dict(parts), dict(copies)), group=group.workers)
    return _joined(found)


def _joined(found: list[tuple[Digest, Digest]]) -> Digest:
    """Adds up the digests of the workers. A copy that differs from the first worker's is added too, which spoils the
    sum."""
    (_, first), *_ = found
    whole: Digest = defaultdict(int, first)
    for parts, copies in found:
        for module, value in parts.items():
            whole[module] += value
        for module, value in copies.items():
            whole[module] += value - first[module]
    return {module: value % 2**64 for module, value in whole.items()}


def _live_weights(
    model: nn.Module, stripe: int | None, group: TensorParallel
) -> Iterator[tuple[str, Any, Tensor, int]]:
    """Yields name, layer, chosen columns of the weight, and how many columns of other workers are before them."""
    layers = linear_layers(model)
    heads = {f"{name}.weight": head for name, head in output_heads(model).items()}
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        width = as_matrix(parameter).shape[1] if parameter.numel() else 0
        if name in heads:
            chosen = columns(width, stripe)
            yield name, layer, live_weight(heads.pop(name), parameter, chosen), 0
        elif parameter.numel():
            chosen, first = _own_columns(layer, name, width, stripe, group)
            yield name, layer, as_matrix(parameter)[:, chosen], first
        else:
            linear = layers[name.rpartition(".")[0]]
            like = torch.empty(0, input_width(linear), dtype=parameter.dtype)
            chosen, first = _own_columns(layer, name, like.shape[1], stripe, group)
            yield name, layer, live_weight(linear, like, chosen), first
    for name, head in heads.items():
        # The heads left are tied, and their weights counted already; a kernel with another weight adds a module.
        tied = head.get_parameter("weight")
        chosen = columns(tied.shape[1], stripe)
        weight = live_weight(head, tied, chosen)
        if not torch.equal(weight, tied[:, chosen]):
            yield name, head, weight, 0


def _own_columns(layer: Any, name: str, width: int, stripe: int | None, group: TensorParallel) -> tuple[slice, int]:
    """Returns which of a worker's columns belong to a stripe of the whole matrix, and how many of the stripe are other
    workers' before them."""
    if group.size == 1 or division_of(layer, name) is not Division.COLUMNS:
        return columns(width, stripe), 0
    before, whole = width * group.rank, columns(width * group.size, stripe)
    if whole == slice(None):
        return whole, before
    first = max(0, -(-(before - whole.start) // STRIPES))
    return slice(whole.start + first * STRIPES - before, None, STRIPES), first
