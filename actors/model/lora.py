"""Low-rank adapters (Hu et al. 2022, https://arxiv.org/abs/2106.09685): put beside the linear layers of a model's
trunk, merged into them, and saved or sent on their own."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.compat import adapter_config, adapters_disabled, inject_adapters
from actors.model.sharding.weights import is_empty, placeholders, shard_like
from cluster.errors import UserError
from cluster.recipe.base import Lora

# The file that PEFT, transformers and vLLM look for.
ADAPTER_FILE = "adapter_model.safetensors"
# The folder of an adapter, below the model that it is merged into.
FOLDER = "adapter"
# How the names of an adapter's two matrices end: A [rank, inputs] and B [outputs, rank].
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
# And, with DoRA, that of the lengths of the weight's rows [outputs].
LENGTHS = ".lora_magnitude_vector.default.weight"


def add(model: Any, settings: Lora, seed: int, rows: Sequence[int] = ()) -> None:
    """Puts an adapter beside every linear layer but the output head, and freezes everything else.

    The model computes the same as before, since the B matrices begin at zero; the A matrices are drawn from `seed`.
    Where experts are one tensor, only layers outside the blocks that hold them get adapters, those of the attention:
    PEFT's adapters of such tensors have no place in a merged model or in vLLM.

    Args:
        rows: ids of tokens that the model has not learned; their embeddings, and their rows of the head, are trained
            too (`keep_other_rows`).

    Raises:
        UserError: the settings name a layer that the model does not have, or that cannot have an adapter; or no layer
            of the model can.
    """
    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    blocks = _expert_blocks(model)
    inside = {name for name in linear if blocks.intersection(name.split("."))}
    # PEFT finds layers by the ends of their names, which others may share (CTRL).
    others = {name for name, _ in model.named_modules() if name not in linear} | inside
    targets = {name.rpartition(".")[2] for name in linear - inside} - {name.rpartition(".")[2] for name in others}
    if not targets:
        kind = model.config.model_type
        raise UserError(f"a model of the kind {kind} has no linear layers, which adapters stand beside: leave out lora")
    if missing := sorted(set(settings.targets or ()) - targets):
        raise UserError(
            f"lora.targets: the model has no linear layer {', '.join(missing)} that can have an adapter; it has "
            f"{', '.join(sorted(targets))}"
        )
    names = settings.targets or targets
    with placeholders(model, [name for name in linear if name.rpartition(".")[2] in names]):
        torch.manual_seed(seed)
        inject_adapters(model, settings, sorted(names))
    if is_empty(model):
        _read_lengths(model)
    model.trained_rows = tuple(rows)
    if rows:
        for weight in _token_weights(model):
            weight.requires_grad_(True)


@torch.no_grad()
def _read_lengths(model: Any) -> None:
    """Reads the lengths of the rows of each weight, which DoRA keeps, from the files of an `empty_model`."""
    for name, parameter in model.named_parameters():
        if name.endswith(LENGTHS):
            weight = model.stored_weights.tensor(f"{name.removesuffix(LENGTHS)}.weight")
            parameter.copy_(weight.float().norm(dim=1))


def _expert_blocks(model: Any) -> set[str]:
    """Returns the names within a layer, such as mlp, of the modules that hold experts as one tensor."""
    experts = [name.split(".")[:-1] for name, parameter in model.named_parameters() if parameter.ndim == 3]
    return {path[-2] for path in experts}


def _token_weights(model: Any) -> list[nn.Parameter]:
    """Returns the weights [V, H] of the embeddings and of the head, or the one of both where they are tied."""
    both = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return [both[0]] if both[0] is both[1] else list(both)


@torch.no_grad()
def keep_other_rows(model: Any) -> None:
    """Sets the gradients of embeddings and head to zero, except in the rows that `add` was given to train."""
    rows = getattr(model, "trained_rows", ())
    for weight in _token_weights(model) if rows else ():
        if weight.grad is None:
            continue
        mask = torch.zeros(weight.shape[0], 1, device=weight.device)
        mask[list(rows)] = 1
        weight.grad.mul_(shard_like(mask, weight))


def has_adapters(model: Any) -> bool:
    """Says whether `add` was called on the model."""
    return hasattr(model, "peft_config")


def merged_weights(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a model without adapters that computes the same: W + alpha / rank · B A (equation 3), with
    DoRA its rows scaled to the lengths that were trained (Liu et al. 2024, equation 5).

    Args:
        model: one that `add` was called on.
        weights: its state dictionary, of full tensors.
    """
    base = {name.replace(".base_layer.", "."): value for name, value in weights.items() if not is_adapter(name)}
    return dict(merge_into(base.items(), scaled_adapters(model, weights)))


def scaled_adapters(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the adapters alone, with B times alpha / rank, or alpha / √rank where that is stabilized
    (Kalajdzievski 2023): the tensors that `merge_into` needs beside the base weights.

    Args:
        model: one that `add` was called on.
        weights: its state dictionary, or the adapters' part of it.
    """
    config = adapter_config(model)
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    return {name: scale * value if name.endswith(UP) else value for name, value in weights.items() if is_adapter(name)}


def merge_into(
    base_weights: Iterable[tuple[str, Tensor]], adapters: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """Yields the base weights, those of layers with an adapter merged with it in float32.

    Args:
        base_weights: names and tensors.
        adapters: `scaled_adapters`.
        dtype: the element type that merged weights are rounded to, float32 or bfloat16.
    """
    for name, weight in base_weights:
        layer = name.removesuffix(".weight")
        if layer + UP in adapters:
            merged = weight.float() + adapters[layer + UP] @ adapters[layer + DOWN]
            if layer + LENGTHS in adapters:
                merged *= (adapters[layer + LENGTHS] / merged.norm(dim=1)).unsqueeze(1)
            yield name, merged if dtype is torch.float32 else rounded_by_chance(merged, name)
        else:
            yield name, weight


def rounded_by_chance(matrix: Tensor, name: str) -> Tensor:
    """Rounds a float32 matrix [M, N] to bfloat16, up or down so that values are right in the mean (stochastic rounding,
    Gupta et al. 2015, section 3.1); under the same name always the same way.

    A weight that is stored in bfloat16 is one of its numbers: rounded to the nearest, it would stay there until an
    adapter moves it by half the distance to the next, and 0.7 of a first step's effect would be lost.
    """
    chance = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    rows, columns = (torch.randint(1 << 16, (size,), generator=chance, dtype=torch.int32) for size in matrix.shape)
    # bfloat16 is the upper half of a float32's bits: the lower half, above a threshold, is carried into it.
    bits = matrix.contiguous().view(torch.int32) + ((rows.unsqueeze(1) + columns) & 0xFFFF)
    return (bits & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def is_adapter(name: str) -> bool:
    """Says whether a tensor of this name is a part of an adapter."""
    return ".lora_" in name


@contextmanager
def disabled(model: Any) -> Iterator[Any]:
    """Disables the adapters for as long as the context lasts, and yields the model."""
    with adapters_disabled(model):
        yield model


def save_adapter(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes the adapter in PEFT's format, which vLLM loads beside the model that it was trained on.

    Args:
        model: one that `add` was called on.
        weights: its state dictionary, of full tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = adapter_config(model)
    config.base_model_name_or_path = str(model.name_or_path)
    config.task_type = "CAUSAL_LM"
    config.save_pretrained(folder)
    names = {name: name.replace(LENGTHS, ".lora_magnitude_vector") for name in weights if is_adapter(name)}
    own = {name.replace(".default.", "."): weights[given] for given, name in names.items()}
    contiguous = {f"base_model.model.{name}": value.contiguous() for name, value in own.items()}
    save_file(contiguous, folder / ADAPTER_FILE, metadata={"format": "pt"})
