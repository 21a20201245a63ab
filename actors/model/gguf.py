"""Models in one GGUF file, as llama.cpp reads them; transformers turns their weights back into float32."""

from pathlib import Path
from typing import Any


def place(model: str | Path) -> dict[str, str]:
    """What `from_pretrained` takes: for a Hugging Face folder, a Hub name, or a path that ends in .gguf."""
    path = Path(model)
    if path.suffix != ".gguf":
        return {"pretrained_model_name_or_path": str(model)}
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def forget_quantisation(model: Any) -> None:
    """Makes a model that was read from a GGUF file one like any other: transformers would refuse to save it."""
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
