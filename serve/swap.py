"""What vLLM's worker gets besides its own methods: to load other weights of the same model while it lives."""

from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

from actors.transfer import finish_reload, live_digest
from actors.weights import digest, stored


class Swap:
    """A worker extension (`worker_extension_cls`): its methods are called by name, in the worker's process."""

    model_runner: Any
    model_config: Any

    def read_weights(self, folder: str) -> dict[str, int]:
        """`digest` of the safetensors of a Hugging Face directory, in the element type that the model computes in.

        Raises:
            OSError: they cannot be read.
            SafetensorError: they are damaged.
        """
        tensors = stored(Path(folder))
        return digest((name, tensor.to(self.model_config.dtype)) for name, tensor in tensors)

    def swap_weights(self, folder: str) -> dict[str, int]:
        """Loads them, and returns the `live_digest` of what the model computes with then."""
        model = self.model_runner.get_model()
        initialize_layerwise_reload(model)
        model.load_weights(stored(Path(folder)))
        finish_reload(model, self.model_config)
        return live_digest(model)
