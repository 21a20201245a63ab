"""The gate between requests and changes of the weights: it keeps the two apart, and knows which requests saw both
versions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


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
