"""How long the steps of a task take."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Adds up the seconds of every step that is named."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def reading(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Passes on the items, and times how long each takes to come, not what is done with it."""
        spent, start = 0.0, time.perf_counter()
        for item in items:
            spent += time.perf_counter() - start
            yield item
            start = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + spent + time.perf_counter() - start
