"""Models that several workers share, made without memory for their weights and filled from the files of a folder: each
worker reads its own part, so that no worker ever holds the whole model.

`empty_model` makes one on PyTorch's meta device; parameters that are added before it is sharded (adapters, grown
embeddings, a new head) are real and the same on every worker. `fill` then allocates and reads a worker's part.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from actors.compat import converts_weights, hub_folder, parameters_without_memory
from cluster.run.weight_files import weight_files

# Where PEFT puts the weight of a layer that has an adapter.
BASE_LAYER = ".base_layer."
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class StoredWeights:
    """The file of each tensor of a folder, by the tensor's name."""

    files: Mapping[str, Path]

    @classmethod
    def of(cls, folder: Path) -> "StoredWeights":
        """Reads the names in a folder's files.

        Raises:
            OSError: one of them cannot be read.
            SafetensorError: one of them is damaged.
        """
        files: dict[str, Path] = {}
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as opened:
                files |= dict.fromkeys(opened.keys(), file)
        return cls(files)

    def shapes(self) -> dict[str, list[int]]:
        """Returns the shape of each tensor."""
        return {name: shape for names, opened in self._opened(self.files) for name, shape in _shapes(names, opened)}

    def read(self, parts: Mapping[str, slice]) -> Iterator[tuple[str, Tensor]]:
        """Reads rows of tensors, file by file: each file is mapped into memory while it is read, and released."""
        for names, opened in self._opened(parts):
            for name in names:
                yield name, opened.get_slice(name)[parts[name]]

    def tensor(self, name: str) -> Tensor:
        """Reads one tensor."""
        ((_, found),) = self.read({name: slice(None)})
        return found

    def _opened(self, names: Iterable[str]) -> Iterator[tuple[list[str], Any]]:
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_file[self.files[name]].append(name)
        for file, own in by_file.items():
            with safe_open(file, framework="pt") as opened:
                yield own, opened


def _shapes(names: list[str], opened: Any) -> Iterator[tuple[str, list[int]]]:
    for name in names:
        yield name, opened.get_slice(name).get_shape()


def is_shared() -> bool:
    """Says whether this process is one of several workers that share their models."""
    return dist.is_initialized() and dist.get_world_size() > 1


def empty_model(kind: Any, path: str | Path, new: tuple[str, ...] = (), **config: Any) -> Any:
    """Makes the model of a folder without memory for its weights, which `fill` reads.

    Args:
        kind: transformers' class, such as AutoModelForCausalLM.
        path: a Hugging Face folder, or a name on the Hub.
        new: parameters that the folder may lack; they are real, and zero.
        config: further values of the configuration.

    Returns:
        The model, whose parameters are on the meta device; None if the tensors of the files are not one by one those of
        the model: GGUF, packed or quantized weights, experts that transformers joins to one tensor.

    Raises:
        OSError: the files cannot be read.
        SafetensorError: they are damaged.
    """
    folder = Path(path) if Path(path).is_dir() else None if Path(path).is_file() else hub_folder(str(path))
    if folder is None:
        return None
    settings = AutoConfig.from_pretrained(folder, **config)
    if getattr(settings, "quantization_config", None):
        return None
    with parameters_without_memory():
        model = kind.from_config(settings, dtype=torch.float32, attn_implementation="sdpa")
    # Each of two tied parameters was made by itself.
    model.tie_weights()
    stored = StoredWeights.of(folder)
    shapes = stored.shapes()
    for name, parameter in list(model.named_parameters()):
        if name in new and name not in shapes:
            _replace(model, {id(parameter): nn.Parameter(torch.zeros(parameter.shape))})
        elif shapes.get(name) != list(parameter.shape):
            return None
    if converts_weights(model):
        return None
    if (folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.stored_weights = stored
    return model.eval()


def is_empty(model: nn.Module) -> bool:
    """Says whether a model was made by `empty_model` and has not been filled."""
    return any(parameter.is_meta for parameter in model.parameters())


def whole_weights(model: Any) -> Callable[[str, Tensor], Tensor]:
    """Returns a function that gives the whole tensor of a name of an empty model, from its files if it is to be read,
    for one tensor at a time."""

    def whole(name: str, own: Tensor) -> Tensor:
        return model.stored_weights.tensor(name) if own.is_meta else own.detach()

    return whole


def take_real(model: nn.Module) -> dict[str, Tensor]:
    """Moves the tensors of a model that are not read from files to the meta device too, and returns them by name."""
    real = {name: own for name, own in model.named_parameters() if not own.is_meta}
    _replace(model, {id(own): nn.Parameter(own.detach().to("meta"), own.requires_grad) for own in real.values()})
    return {name: own.detach() for name, own in real.items()}


@torch.no_grad()
def fill(module: nn.Module, model: Any, device: torch.device, real: Mapping[str, Tensor]) -> None:
    """Allocates a model that has been sharded, and reads this worker's part of it.

    Args:
        module: the module that was sharded: the model, or one around it.
        model: of `empty_model`.
        device: the device to hold it.
        real: whole tensors that are not read, as of `take_real`.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    module.to_empty(device=device)
    for name, value in buffers.items():
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, value.to(device))
    refill(model, real)


@torch.no_grad()
def refill(model: Any, real: Mapping[str, Tensor] | None = None) -> None:
    """Reads this worker's part of a sharded model from its files again; `real` are whole tensors that are not read."""
    real, stored = real or {}, {}
    for name, own in model.named_parameters():
        if name in real:
            own.copy_(shard_like(real[name], own))
        else:
            stored[name.replace(BASE_LAYER, ".")] = own
    rows = {name: part for name, own in stored.items() if (part := own_rows(own)) != slice(0, 0)}
    for name, part in model.stored_weights.read(rows):
        local(stored[name]).copy_(part)


def local(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this worker holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, own: Tensor) -> Tensor:
    """Returns this worker's part of a full tensor, sharded as `own` is."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def own_rows(own: Tensor) -> slice:
    """Returns the rows of a tensor that this worker holds: of n rows over W workers the chunk of ⌈n / W⌉ that has its
    number, as `torch.chunk` counts them.

    Raises:
        RuntimeError: the tensor is not sharded by rows.
    """
    if not isinstance(own, DTensor):
        return slice(None)
    begin, end = 0, own.shape[0]
    for dimension, placement in enumerate(own.placements):
        if isinstance(placement, Shard):
            size = -(-(end - begin) // own.device_mesh.size(dimension))
            first = min(end, begin + size * own.device_mesh.get_local_rank(dimension))
            begin, end = first, min(end, first + size)
    if end - begin != own.to_local().shape[0]:
        raise RuntimeError(f"a tensor of {own.shape[0]} rows is sharded in another way than by rows: {own.placements}")
    return slice(begin, end) if end > begin else slice(0, 0)


def make_real(model: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Reads whole parameters of an empty model, which can then be computed with, from its files."""
    names = {id(own): name for name, own in model.named_parameters()}
    chosen = {id(own): own for own in parameters if own.is_meta}
    _replace(
        model,
        {
            key: nn.Parameter(model.stored_weights.tensor(names[key]).float(), own.requires_grad)
            for key, own in chosen.items()
        },
    )


def first_layers(model: Any) -> Any:
    """Makes a real model of the embeddings, the head and the first layers, one of each kind, of an empty one."""
    config = copy.deepcopy(model.config)
    kinds = getattr(config, "layer_types", None) or ["all"]
    config.num_hidden_layers = 1 + max(kinds.index(kind) for kind in kinds)
    if kinds != ["all"]:
        config.layer_types = kinds[: config.num_hidden_layers]
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    made.stored_weights = model.stored_weights
    refill(made, {name: own.detach() for name, own in model.named_parameters() if not own.is_meta})
    return made.eval()


@contextmanager
def placeholders(model: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Gives layers of an empty model weights that take no memory and are on the CPU, for as long as the context lasts.

    PEFT makes adapters on the device of their layer's weight; on the meta device they would be lost.
    """
    modules: list[Any] = [module for name in layers if (module := _layer(model, name)).weight.is_meta]
    weights = [module.weight for module in modules]
    for module in modules:
        module.weight = nn.Parameter(torch.zeros(1).expand(module.weight.shape))
    try:
        yield
    finally:
        for module, weight in zip(modules, weights, strict=True):
            module.weight = weight.requires_grad_(module.weight.requires_grad)


def _layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _replace(model: nn.Module, others: Mapping[int, nn.Parameter]) -> None:
    """Puts others in the place of parameters, by their ids, wherever a module has them."""
    for module in model.modules():
        for name, own in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(own) in others:
                setattr(module, name, others[id(own)])
