"""Checkpoints of models and their optimizers, in safetensors and JSON."""

import json
import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from actors.model.fsdp import gathered, spread_like

STATE = "state.json"


def save_checkpoint(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    kept: Mapping[str, Tensor] | None,
    state: dict[str, Any],
    first: bool = True,
) -> None:
    """Writes to the side and renames: a kill leaves the old or the new. Tensors are gathered one by one where models
    are spread over workers, which all have to call this; the `first` writes.

    Args:
        models: by name, each with an optimizer of that name.
        kept: more tensors, if there are any.
        state: JSON values.
    """
    files: dict[str, Mapping[str, Tensor]] = {} if kept is None else {"kept": kept}
    for name, model in models.items():
        files |= {name: trained(model), f"{name}-optimizer": _flat(optimizers[name])}
    side = folder.with_name(f"{folder.name}.side")
    if first:
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(parents=True)
    for name, tensors in files.items():
        found = gathered(tensors, keep=first)
        if first:
            save_file(found, side / f"{name}.safetensors")
    if first:
        _take_place(side, folder, state)


def _take_place(side: Path, folder: Path, state: dict[str, Any]) -> None:
    (side / STATE).write_text(json.dumps(state))
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    side.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[dict[str, Tensor] | None, dict[str, Any]] | None:
    """Loads what `save_checkpoint` wrote into models and optimizers, on any number of workers; returns `kept` and
    `state`, or None if there is nothing."""
    if not folder.exists():
        # A kill came between two renames.
        folder = _old(folder)
    if not folder.exists():
        return None
    for name, model in models.items():
        take_over(model, load_file(folder / f"{name}.safetensors"))
        _unflat(optimizers[name], load_file(folder / f"{name}-optimizer.safetensors"))
    path, own = folder / "kept.safetensors", trained(models["policy"])
    kept = {name: spread_like(value, own[name]) for name, value in load_file(path).items()} if path.exists() else None
    return kept, json.loads((folder / STATE).read_text())


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


@torch.no_grad()
def take_over(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Sets parameters that learn to values, whole or spread as they are."""
    for name, own in trained(model).items():
        if name in values:
            value = values[name]
            own.copy_(value if isinstance(value, DTensor) else spread_like(value, own))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that learns, once: tied ones have one name in `named_parameters`."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: safetensors holds no nesting."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, part in state.items() for key, value in part.items()}


def _unflat(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    parameters = list(chain(*(group["params"] for group in optimizer.param_groups)))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        own = parameters[int(index)]
        state.setdefault(int(index), {})[key] = spread_like(value, own) if value.shape == own.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
