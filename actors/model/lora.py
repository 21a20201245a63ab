"""Low-rank adapters (Hu et al. 2022, https://arxiv.org/abs/2106.09685): put beside the linear layers of a model's
trunk, merged into them, and saved or sent on their own."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cluster.recipe.base import Lora

# What PEFT, transformers and vLLM look for.
ADAPTER_FILE = "adapter_model.safetensors"
# Where an adapter lies, below the model that it is merged into.
FOLDER = "adapter"
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"


def add(model: Any, settings: Lora, seed: int) -> None:
    """Puts an adapter beside every linear layer but the output head, and freezes everything else.

    The model computes what it did, since the upper matrices begin at zero; the lower ones are drawn from `seed`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    targets = sorted({name.rpartition(".")[2] for name in linear})
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets), model)


def has_adapters(model: Any) -> bool:
    """Whether `add` was called on it."""
    return hasattr(model, "peft_config")


def merged(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the model without adapters that computes the same: W + alpha / rank · B A (equation 3).

    Args:
        model: what `add` was called on.
        weights: its state dictionary, whole.
    """
    plain = {name.replace(".base_layer.", "."): value for name, value in weights.items() if not is_adapter(name)}
    return dict(added(plain.items(), scaled(model, weights)))


def scaled(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters alone, the upper matrices times alpha / rank: all that `added` needs beside the model's own weights.

    Args:
        model: what `add` was called on.
        weights: its state dictionary, or the adapters' part of it.
    """
    config = model.peft_config["default"]
    scale = config.lora_alpha / config.r
    return {name: scale * value if name.endswith(UP) else value for name, value in weights.items() if is_adapter(name)}


def added(plain: Iterable[tuple[str, Tensor]], adapters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights with the adapters, as of `scaled`, merged into those that have one."""
    for name, weight in plain:
        layer = name.removesuffix(".weight")
        if layer + UP in adapters:
            yield name, weight.float() + adapters[layer + UP] @ adapters[layer + DOWN]
        else:
            yield name, weight


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is a part of an adapter."""
    return ".lora_" in name


@contextmanager
def switched_off(model: Any) -> Iterator[Any]:
    """The model as it was before `add`, for as long as the context lasts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes the adapter in PEFT's format, which vLLM loads beside the model that it was trained on.

    Args:
        model: what `add` was called on.
        weights: its state dictionary, whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = str(model.name_or_path)
    config.task_type = "CAUSAL_LM"
    config.save_pretrained(folder)
    own = {name.replace(".default.", "."): value for name, value in weights.items() if is_adapter(name)}
    contiguous = {f"base_model.model.{name}": value.contiguous() for name, value in own.items()}
    save_file(contiguous, folder / ADAPTER_FILE, metadata={"format": "pt"})
