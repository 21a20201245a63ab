"""What vLLM's worker gets besides its own methods: to load other weights of the same model while it lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.rollout.weight_transfer import live_digest, reload_weights
from actors.rollout.weights import digest, stored


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
        reload_weights(model, self.model_config, stored(Path(folder)))
        return live_digest(model)


# Keeps answers and changes of the weights apart as far as possible, and knows which answers saw both.
@dataclass(eq=False)
class InflightRequest:
    """One answer inside.

    Attributes:
        versions: the versions of the weights that wrote it, in their order.
    """

    versions: list[str]

    @property
    def mixed(self) -> str | None:
        """The versions in words, if there are several."""
        return ", ".join(self.versions) if len(self.versions) > 1 else None


class WeightSwapGate:
    """Open to any number of answers; while it is closed, new ones wait outside."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._inside: set[InflightRequest] = set()
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._change = asyncio.Lock()

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[InflightRequest]:
        """One answer, from its beginning to its end."""
        await self._open.wait()
        entered = InflightRequest([self.version])
        self._inside.add(entered)
        self._empty.clear()
        try:
            yield entered
        finally:
            self._inside.discard(entered)
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def closed(self, drain_seconds: float) -> AsyncIterator[None]:
        """Closed for new answers. Those inside get the time given to end; what goes on longer stays inside."""
        async with self._change:
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

    def change_to(self, version: str) -> int:
        """Notes that other weights write from now on, and returns how many answers are inside."""
        self.version = version
        for entered in self._inside:
            entered.versions.append(version)
        return len(self._inside)
