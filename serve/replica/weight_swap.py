"""Changes the weights of a live vLLM engine, apart from its requests: loads another version, proves it by digests, and
loads the old one if that fails; knows which requests saw both.

Importing this file does not import vLLM, which imports it in its workers.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.compat import load_layerwise
from actors.rollout.weights import digest, live_digest, mismatch, stored

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger("ray.serve")


@dataclass(eq=False)
class InflightRequest:
    """A request in progress.

    Attributes:
        versions: the versions of the weights that generated its answer, in order.
    """

    versions: list[str]

    @property
    def mixed(self) -> str | None:
        """The versions, separated by commas, if there are several."""
        return ", ".join(self.versions) if len(self.versions) > 1 else None


class WeightSwapGate:
    """Keeps requests and changes of the weights apart as far as possible, and records which requests saw both.

    It admits any number of requests. While it is closed, new ones wait.

    Args:
        version: the version of the weights at the start.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self._inflight: set[InflightRequest] = set()
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._swap = asyncio.Lock()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[InflightRequest]:
        """Admits one request, for as long as the context lasts."""
        await self._open.wait()
        request = InflightRequest([self.version])
        self._inflight.add(request)
        self._empty.clear()
        try:
            yield request
        finally:
            self._inflight.discard(request)
            if not self._inflight:
                self._empty.set()

    @property
    def is_empty(self) -> bool:
        """Whether no request is in progress."""
        return not self._inflight

    @asynccontextmanager
    async def closed(self, drain_seconds: float) -> AsyncIterator[None]:
        """Closes the gate. Requests in progress get `drain_seconds` to end; longer ones stay in progress."""
        async with self._swap:
            self._open.clear()
            try:
                try:
                    async with asyncio.timeout(drain_seconds):
                        await self._empty.wait()
                except TimeoutError:
                    pass
                yield
            finally:
                self._open.set()

    def set_version(self, version: str) -> int:
        """Records that other weights generate from now on, and returns how many requests are in progress."""
        self.version = version
        for request in self._inflight:
            request.versions.append(version)
        return len(self._inflight)


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


async def digest_files(engine: "AsyncLLM", folder: Path) -> dict[str, int]:
    """Returns the digests that an engine must have after loading a directory.

    Raises:
        OSError: the files cannot be read.
        SafetensorError: they are damaged.
    """
    return await _call(engine, "digest_files", folder)


async def swap_weights(engine: "AsyncLLM", folder: Path, expected: dict[str, int], current: Path) -> str | None:
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


async def _call(engine: "AsyncLLM", method: str, folder: Path) -> dict[str, int]:
    # Each worker of an engine returns the digests of the whole.
    found: list[dict[str, int]] = await engine.collective_rpc(method, args=(str(folder),))
    return found[0]
