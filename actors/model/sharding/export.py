"""Writes a model tensor by tensor, so that no process ever holds the whole of it: one that several workers share, or
one that is copied from the files of another folder."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.compat import converts_weights
from actors.model import causal_lm, lora
from actors.model.sharding.fsdp import full_tensor, gather_to_cpu
from actors.model.sharding.weights import BASE_LAYER
from cluster.recipe.base import Precision
from cluster.run.atomic import write_json
from cluster.run.weight_files import INDEX, WEIGHTS

# The most bytes of a file, unless one tensor has more. The worker that writes holds one file at a time.
FILE_BYTES = 1_000_000_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _gathered(_: str, own: Tensor) -> Tensor:
    return full_tensor(own.detach())


def export_shared(
    model: Any,
    tokenizer: Any,
    path: Path,
    rank: int,
    precision: Precision = "float32",
    whole: Callable[[str, Tensor], Tensor] = _gathered,
) -> None:
    """Writes the files of `causal_lm.save` for a model that is sharded; every worker has to call it.

    Each tensor is gathered by itself. The first worker writes them to files of at most `FILE_BYTES` and an index, or to
    one file where that is enough. Where transformers joins tensors of the files to others, it has to do the writing,
    and the first worker gathers the whole model.

    Args:
        model: that is sharded, or an `empty_model`, with `whole_weights` of it.
        tokenizer: to save with it.
        path: the folder to write to.
        rank: of this worker.
        precision: of the weights that are written.
        whole: gives the whole tensor of a parameter of that name.
    """
    if converts_weights(model):
        weights = gather_to_cpu(model.state_dict(), keep=rank == 0)
        if rank == 0:
            causal_lm.save(model, tokenizer, path, weights, precision)
        return
    own = stored_once(model)
    adapters = gather_to_cpu({name: own.pop(name) for name in list(own) if lora.is_adapter(name)}, keep=rank == 0)
    groups = _groups({name: tensor.numel() * DTYPES[precision].itemsize for name, tensor in own.items()})
    if rank == 0:
        _write_settings(model, tokenizer, path, precision)
        if adapters and not model.trained_rows:
            lora.save_adapter(model, adapters, path / lora.FOLDER)
    scaled = lora.scaled_adapters(model, adapters) if adapters else {}
    files = [WEIGHTS] if len(groups) == 1 else [_name(number, len(groups)) for number in range(len(groups))]
    for file, names in zip(files, groups, strict=True):
        gathered = ((_plain(name), whole(name, own[name])) for name in names)
        if rank == 0:
            written = {name: rounded(tensor, precision) for name, tensor in lora.merge_into(_on_cpu(gathered), scaled)}
            save_file(written, path / file, metadata={"format": "pt"})
        else:
            for _ in gathered:
                pass
    if rank == 0 and len(groups) > 1:
        weight_map = {_plain(name): file for file, names in zip(files, groups, strict=True) for name in names}
        size = sum(tensor.numel() for tensor in own.values()) * DTYPES[precision].itemsize
        write_json(path / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def stored_once(model: Any) -> dict[str, Tensor]:
    """Returns the tensors of a model that its files hold: of those that are tied, the first."""
    names = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Divides tensors into files, in their order."""
    groups: list[list[str]] = [[]]
    left = FILE_BYTES
    for name, size in sizes.items():
        if groups[-1] and size > left:
            groups.append([])
            left = FILE_BYTES
        groups[-1].append(name)
        left -= size
    return groups


def _write_settings(model: Any, tokenizer: Any, path: Path, precision: Precision) -> None:
    """Writes configuration and tokenizer, and removes the weights of an earlier export."""
    path.mkdir(parents=True, exist_ok=True)
    for file in (path / WEIGHTS, path / INDEX, *path.glob("model-*-of-*.safetensors")):
        file.unlink(missing_ok=True)
    model.config.dtype = precision
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    model.config.save_pretrained(path)
    if model.can_generate():
        model.generation_config.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _name(number: int, files: int) -> str:
    return WEIGHTS.replace(".", f"-{number + 1:05}-of-{files:05}.", 1)


def _plain(name: str) -> str:
    return name.replace(BASE_LAYER, ".")


def _on_cpu(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.cpu()) for name, tensor in tensors)


def rounded(tensor: Tensor, precision: Precision) -> Tensor:
    """Rounds a tensor to the precision in which it is written."""
    return (tensor.to(DTYPES[precision]) if tensor.is_floating_point() else tensor).contiguous()
