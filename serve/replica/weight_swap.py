"""Loads another version of the weights into a live vLLM engine, proves it by digests, and loads the old one if it
fails."""

import logging
import os
from pathlib import Path
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from actors.compat import load_layerwise
from actors.rollout.weights import digest, live_digest, mismatch, stored

logger = logging.getLogger("ray.serve")


class WeightReloadExtension:
    """Methods added to vLLM's worker (`worker_extension_cls`), called by name and in the worker's process.

    After an upgrade of vLLM, look at the worker's `model_runner` and `model_config`.
    """

    model_runner: Any
    model_config: Any

    def digest_files(self, folder: str) -> dict[str, int]:
        """Returns the `digest` of the safetensors of a Hugging Face directory, in the model's element type.

        Raises:
            OSError: they cannot be read.
            SafetensorError: they are damaged.
        """
        tensors = stored(Path(folder))
        return digest((name, tensor.to(self.model_config.dtype)) for name, tensor in tensors)

    def load_files(self, folder: str) -> dict[str, int]:
        """Loads such a directory, and returns the `live_digest` of the weights that the model then computes with."""
        model = self.model_runner.get_model()
        load_layerwise(model, self.model_config, stored(Path(folder)))
        return live_digest(model)


async def digest_files(engine: AsyncLLM, folder: Path) -> dict[str, int]:
    """Returns the digests that an engine must have after loading a directory.

    Raises:
        OSError: the files cannot be read.
        SafetensorError: they are damaged.
    """
    return await _call(engine, "digest_files", folder)


async def swap_weights(engine: AsyncLLM, folder: Path, expected: dict[str, int], current: Path) -> str | None:
    """Loads a directory into a paused engine; if its digests are not as expected, loads the current one again.

    Ends the process if neither works: no request may be answered with unknown weights. Ray Serve then starts the
    replica again.

    Returns:
        The modules that differed from the files, or None.
    """
    verified = False
    try:
        wrong = mismatch(expected, await _call(engine, "load_files", folder))
        if wrong:
            before = await _call(engine, "digest_files", current)
            verified = mismatch(before, await _call(engine, "load_files", current)) is None
        # Cached keys and values are of the old weights.
        await engine.reset_prefix_cache(reset_running_requests=True)
        verified = verified or not wrong
    finally:
        if not verified:
            logger.critical("%s: neither the new weights nor the old could be loaded", current)
            os._exit(1)
    return wrong


async def _call(engine: AsyncLLM, method: str, folder: Path) -> dict[str, int]:
    # Each worker of an engine returns the digests of the whole.
    found: list[dict[str, int]] = await engine.collective_rpc(method, args=(str(folder),))
    return found[0]
