"""Checkpoints of models and their optimisers, in safetensors and JSON."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE = "state.json"


def save_checkpoint(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    kept: Mapping[str, Tensor] | None,
    state: dict[str, Any],
) -> None:
    """Writes to the side and renames: a kill leaves the old or the new.

    Args:
        models: by name, each with an optimiser of that name.
        kept: more tensors, if there are any.
        state: JSON values.
    """
    side = folder.with_name(f"{folder.name}.side")
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    for name, model in models.items():
        save_file({key: value.contiguous() for key, value in trained(model).items()}, side / f"{name}.safetensors")
        save_file(_flat(optimisers[name]), side / f"{name}-optimiser.safetensors")
    if kept is not None:
        save_file(dict(kept), side / "kept.safetensors")
    (side / STATE).write_text(json.dumps(state))
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    side.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, models: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> tuple[dict[str, Tensor] | None, dict[str, Any]] | None:
    """Loads what `save_checkpoint` wrote into models and optimisers; returns `kept` and `state`, or None if there is
    nothing."""
    old = folder.with_name(f"{folder.name}.old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    if not folder.exists():
        return None
    for name, model in models.items():
        model.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
        _unflat(optimisers[name], load_file(folder / f"{name}-optimiser.safetensors"))
    kept = folder / "kept.safetensors"
    return load_file(kept) if kept.exists() else None, json.loads((folder / STATE).read_text())


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that learns, once: tied ones have one name in `named_parameters`."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _flat(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: safetensors holds no nesting."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, part in state.items() for key, value in part.items()}


def _unflat(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
