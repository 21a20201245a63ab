"""Low-rank adapters (Hu et al. 2022, https://arxiv.org/abs/2106.09685): put beside the linear layers of a model's
trunk, merged into them, and saved on their own."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cluster.recipe import Lora

# What PEFT, transformers and vLLM look for.
ADAPTER_FILE = "adapter_model.safetensors"
BASE, DOWN, UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


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
    config = model.peft_config["default"]
    plain = {name: value for name, value in weights.items() if ".lora_" not in name and not name.endswith(BASE)}
    for name in (name.removesuffix(BASE) for name in weights if name.endswith(BASE)):
        change = weights[name + UP] @ weights[name + DOWN]
        plain[f"{name}.weight"] = weights[name + BASE] + config.lora_alpha / config.r * change
        # Where the layer has a bias, it goes on as it is.
        bias = plain.pop(f"{name}.base_layer.bias", None)
        if bias is not None:
            plain[f"{name}.bias"] = bias
    return plain


def save_adapter(model: Any, weights: dict[str, Tensor], base: str, folder: Path) -> None:
    """Writes the adapter in PEFT's format, which vLLM loads beside the model that it was trained on.

    Args:
        model: what `add` was called on.
        weights: its state dictionary, whole.
        base: the model that the adapter belongs to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base
    config.task_type = "CAUSAL_LM"
    config.save_pretrained(folder)
    own = {name.replace(".default.", "."): value for name, value in weights.items() if ".lora_" in name}
    contiguous = {f"base_model.model.{name}": value.contiguous() for name, value in own.items()}
    save_file(contiguous, folder / ADAPTER_FILE, metadata={"format": "pt"})
