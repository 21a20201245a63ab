"""Facts about the model that a recipe starts from, read from its files without loading it."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.recipe.model import Model
from cluster.run.weight_files import weight_files

# The number of experts in configurations of Qwen and OLMoE, Mixtral, DeepSeek, and others.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Bytes of the length that a safetensors file begins with, and the longest header that the format allows.
LENGTH_BYTES, LONGEST_HEADER = 8, 100_000_000
# Parameters in one element of an integer type: such types hold packed parameters of four bits each.
PACKED = {"I32": 8, "U32": 8, "I8": 2, "U8": 2}


def start_config(model: Model) -> dict[str, Any]:
    """Reads config.json of the folder that the model starts from; empty if that is no folder on this machine.

    Raises:
        UserError: it is not valid JSON.
    """
    path = Path(model.start_from or "") / "config.json"
    if not model.start_from or not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model.start_from: {path} is not valid JSON: {error}") from error
    return found


def lacks_template(model: Model) -> bool:
    """Tells whether a model gets Triptych's chat template: a new model, or one in a folder without a template."""
    folder = Path(model.start_from or "")
    settings = folder / "tokenizer_config.json"
    if not model.start_from or not settings.is_file():
        return not model.start_from
    inside = '"chat_template"' in settings.read_text(encoding="utf-8")
    return not (inside or (folder / "chat_template.jinja").exists())


def parameters_in(folder: Path) -> int:
    """Counts the parameters of a Hugging Face folder by the shapes in the headers of its safetensors files.

    Raises:
        UserError: a file is damaged.
    """
    return sum(_elements(file, file.stat().st_mtime_ns) for file in weight_files(folder))


@cache
def _elements(file: Path, changed: int) -> int:  # noqa: ARG001 (a part of the cache's key)
    """Counts the parameters of a file, whose header is JSON of the tensors' types and shapes."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            tensors = json.loads(opened.read(length))
        return sum(
            PACKED.get(tensor["dtype"], 1) * math.prod(tensor["shape"])
            for name, tensor in tensors.items()
            if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.start_from: {file} is no safetensors file, or damaged: {error}") from error
