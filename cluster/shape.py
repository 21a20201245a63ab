"""A model's shape: from one dial, or that of the model it starts from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.failures import UserError
from cluster.recipe import Model, head_size


@dataclass(frozen=True)
class Shape:
    """The numbers that make a Llama."""

    hidden: int
    layers: int
    heads: int
    intermediate: int

    def parameters(self, vocabulary: int) -> int:
        """With tied embeddings: V·h + L·(4h² + 3·h·i + 2h) + h."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return vocabulary * self.hidden + self.layers * layer + self.hidden


def shape_of(model: Model) -> Shape:
    """The shape nearest in parameters to `model.size`; fields the recipe sets are kept.

    Rules: width over depth between 40 and 128, as in GPT-2 to Llama (Kaplan et al. 2020 find loss flat there), hidden a
    multiple of 64, head size 32 below 512 and 64 above, SwiGLU of 8/3 the width rounded up to 64.
    """
    widths = [model.hidden] if model.hidden else list(range(64, 16385, 64))
    depths = [model.layers] if model.layers else list(range(2, 129))
    free = not (model.hidden or model.layers)
    shapes = [_shape(h, n, model.heads) for h in widths for n in depths if not free or 40 <= h / n <= 128]
    return min(shapes, key=lambda shape: abs(shape.parameters(model.vocabulary) - model.parameters))


def parameters(model: Model) -> int:
    """How many parameters the recipe's model has, roughly: by the files it starts from, its shape or its `size`.

    Raises:
        UserError: it starts from a model at the Hub, and the recipe does not say how large that is.
    """
    start = Path(model.start_from) if model.start_from else None
    if start is not None and start.is_file():
        # GGUF files of four bits hold about 0.56 bytes a parameter; wider ones are overestimated, on the safe side.
        return round(start.stat().st_size / 0.56)
    if start is not None and start.is_dir():
        return sum(file.stat().st_size for file in start.glob("*.safetensors")) // 2
    if start is not None and not {"size", "vocabulary"} <= model.model_fields_set:
        raise UserError(
            f"model.start_from: {start} is no folder or file here, and of a model at the Hub the resource plan knows "
            "nothing: set model.size and model.vocabulary to its own"
        )
    return shape_of(model).parameters(model.vocabulary) if model.hidden or model.layers else model.parameters


def vocabulary(model: Model) -> int:
    """How many tokens the model has a place for: by the folder it starts from, else by the recipe."""
    return int(_config(model).get("vocab_size", model.vocabulary))


def trained_shape(model: Model) -> Shape:
    """The shape that the folder it starts from says, else one with as many parameters."""
    config = _config(model)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if all(isinstance(config.get(name), int) for name in names):
        return Shape(*(config[name] for name in names))
    size = {"size": f"{max(1, parameters(model) // 1000)}K", "vocabulary": vocabulary(model)}
    return shape_of(model.model_copy(update=size))


def _config(model: Model) -> dict[str, Any]:
    """What lies with the model that it starts from; nothing if that is no folder here."""
    path = Path(model.start_from or "") / "config.json"
    if not model.start_from or not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model.start_from: {path} is not valid JSON: {error}") from error
    return found


def _shape(hidden: int, layers: int, heads: int | None) -> Shape:
    return Shape(hidden, layers, heads or hidden // head_size(hidden), -(-hidden * 8 // 3 // 64) * 64)
