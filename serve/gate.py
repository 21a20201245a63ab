"""Keeps answers and changes of the weights apart as far as possible, and knows which answers saw both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class Pass:
    """One answer inside.

    Attributes:
        versions: the versions of the weights that wrote it, in their order.
    """

    versions: list[str]

    @property
    def mixed(self) -> str | None:
        """The versions in words, if there are several."""
        return ", ".join(self.versions) if len(self.versions) > 1 else None


class Gate:
    """Open to any number of answers; while it is closed, new ones wait outside."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._inside: set[Pass] = set()
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._change = asyncio.Lock()

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[Pass]:
        """One answer, from its beginning to its end."""
        await self._open.wait()
        entered = Pass([self.version])
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
