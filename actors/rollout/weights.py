"""Publishes weights of the learner for the engines, with digests that prove their arrival: of the weights that are sent
or stored, and of those that a live vLLM model computes with.

The weights are put once into Ray's object store and every engine pulls them by itself, so that one which joins late or
replaces a dead one gets them in the same way as the others. The store serves CPU and GPU engines alike; a broadcast
group (NCCL) would have to be built again each time an engine comes or goes.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from safetensors import safe_open
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
from actors.model.lora import is_adapter
from cluster.run.weight_files import weight_files

# Each version's digest is of one of so many parts of the columns. To read every weight of 135M parameters back out of a
# CPU's kernels takes 1.7 s, more than to load them.
STRIPES = 16
Digest = dict[str, int]
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Weights:
    """One version of the weights in the object store.

    Attributes:
        version: counts upwards; 0 stands for the weights in the model's folder.
        ref: the Ray object reference of the tensors: a dictionary from name to bytes, rows kept apart.
        dtype: the element type of all tensors.
        digests: `digest` of the version's stripe of the tensors, which the weights of every engine must match; of
            adapters, of all of them, as the engine received them.
        adapters: whether the tensors are adapters of version 0's weights, and not whole weights.
    """

    version: int
    ref: Any
    dtype: torch.dtype
    digests: dict[str, int]
    adapters: bool = False


def publish(version: int, state: Mapping[str, Tensor], dtype: torch.dtype) -> Weights:
    """Puts weights into the object store, cast to the element type that the engines compute in; adapters in float32.

    Args:
        version: the version that samples drawn with these weights will carry.
        state: Hugging Face names and tensors, or adapters as of `lora.scaled_adapters`. An output head that is tied to
            the embeddings must be left out.
        dtype: element type of the engines.

    Returns:
        The version with a reference to its tensors, which are lost with the process that called this.
    """
    adapters = any(map(is_adapter, state))
    dtype = torch.float32 if adapters else dtype
    cast = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    proof = digest(cast.items() if adapters else stripes(cast.items(), version))
    return Weights(version, ray.put(pack(cast)), dtype, proof, adapters)


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns contiguous CPU tensors as NumPy arrays of bytes, which Ray hands on without a copy.

    Bytes, since NumPy has no bfloat16. Ray would pickle tensors: 135M parameters took 2 to 3 s from process to process.
    """
    return {name: tensor.view(torch.uint8).numpy() for name, tensor in tensors.items()}


def unpack(packed: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the tensors of `pack` as views of the object store, which must not be written to."""
    with warnings.catch_warnings():
        # PyTorch has no read-only tensors and warns that these could be written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(data).view(dtype) for name, data in packed.items()}


def stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields names and tensors of the safetensors of a Hugging Face directory.

    Raises:
        OSError: they cannot be read.
        SafetensorError: they are damaged.
    """
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                yield name, file.get_tensor(name)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Returns a hash of the weights by module, the same before and after an engine concatenates or pads rows.

    Engines store q, k and v (or gate and up) as one matrix and pad the vocabulary with zero rows. A sum over the rows
    of a hash that takes zero to zero notices neither: every row is hashed with a multilinear hash of its bit patterns
    (Carter and Wegman 1979, modulo 2^64), and the rows of sibling modules are added up.

    Args:
        tensors: names and tensors; a vector counts as a column.

    Returns:
        A 64-bit number for each parent module, such as `model.layers.0.mlp`.
    """
    sums: dict[str, int] = defaultdict(int)
    for name, tensor in tensors:
        sums[module_of(name)] += sum_hashes(hash_rows(tensor))
    return {module: value % 2**64 for module, value in sums.items()}


def stripes(tensors: Iterable[tuple[str, Tensor]], stripe: int | None) -> Iterator[tuple[str, Tensor]]:
    """Yields every `STRIPES`th column of each tensor, from column `stripe` modulo `STRIPES` on, as a matrix.

    Of a narrower tensor, or with None as the stripe, all columns are yielded. All columns change with an update, so
    that weights which did not arrive, or were put in another place, show in any stripe; and `STRIPES` versions in a row
    prove every column.
    """
    for name, tensor in tensors:
        matrix = as_matrix(tensor)
        yield name, matrix[:, columns(matrix.shape[1], stripe)]


def columns(width: int, stripe: int | None) -> slice:
    """Returns the columns that `stripes` takes of a matrix of that width."""
    return slice(None) if stripe is None or width < STRIPES else slice(stripe % STRIPES, None, STRIPES)


def mismatch(expected: Mapping[str, int], found: Mapping[str, int]) -> str | None:
    """Returns the names of the modules whose digests differ, at most three of them, or None if all are the same."""
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if not names:
        return None
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def module_of(name: str) -> str:
    """Returns the parent module that a tensor is counted under."""
    return name.rpartition(".")[0].rpartition(".")[0]


def hash_rows(tensor: Tensor, first_column: int = 0) -> Tensor:
    """Computes the multilinear hash of each row of a tensor, int64. Hashes of parts of a row add up to that of the row.

    Args:
        tensor: [N, …]; a vector counts as a column, and a number as one of length 1.
        first_column: how many columns lie before the tensor's own.
    """
    # Adding zero turns -0.0 into 0.0, which is all that a multiplication by the identity changes.
    rows = as_matrix(tensor.detach() + 0)
    bits = rows.contiguous().view(_INTEGERS[rows.element_size()]).to(torch.int64)
    first = 1 + 2 * first_column
    factors = torch.arange(first, first + 2 * bits.shape[1], 2, device=bits.device) * -7046029254386353131
    return (bits * (factors ^ (factors >> 29))).sum(dim=1)


def as_matrix(tensor: Tensor) -> Tensor:
    """Returns a tensor [N, …] as [N, M], a vector as a column and a number as one of length 1."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def sum_hashes(hashes: Tensor) -> int:
    """Adds up the hashes of whole rows, mixed so that rows cannot make up for each other."""
    mixed = (hashes ^ (hashes >> 32)) * -4658895280553007687
    return int((mixed ^ (mixed >> 29)).sum())


def live_digest(model: nn.Module, stripe: int | None = None) -> Digest:
    """Returns `digest` of the weights that a vLLM model computes with at this moment, or of a stripe of their
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
