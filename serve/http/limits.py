"""How much a key may ask, how many requests may wait, and how large and slow a request may be."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Receive

from cluster.keys import Key
from serve.errors import RequestError

# Ten times what a context of a million characters takes.
MOST_BODY_BYTES = 10 << 20
BODY_SECONDS = 30.0
QUEUE_WAIT_SECONDS = 1


class Bucket:
    """A token bucket: refilled evenly, full after a minute. It may go below zero, because what an answer costs is
    known when it has been given; then nothing is let through until the debt is paid.

    Args:
        per_minute: its size, and what flows in within a minute.
        now: the time in seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute, self._level, self._at = per_minute, float(per_minute), now

    def wait(self, least: float, now: float) -> float:
        """Seconds until it holds at least so much; 0 if it does now."""
        self._fill(now)
        return max(0.0, (least - self._level) * 60 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """Takes so much out, below zero if need be."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now


class KeyLimits:
    """Requests and tokens a minute of every key, in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def enter(self, key: Key) -> None:
        """Counts one request.

        Raises:
            RequestError: 429, the key has used up its requests or tokens; `Retry-After` says for how long.
        """
        now = self._clock()
        requests = self._bucket(key, "requests", key.requests_per_minute)
        tokens = self._bucket(key, "tokens", key.tokens_per_minute)
        for what, bucket in (("requests", requests), ("tokens", tokens)):
            if bucket and (wait := bucket.wait(1, now)):
                message = f"this key may use {bucket.per_minute} {what} a minute; try again in {math.ceil(wait)} s"
                raise RequestError(429, message, "RateLimitError", wait=math.ceil(wait))
        if requests:
            requests.take(1, now)

    def spend(self, key: Key, tokens: int) -> None:
        """Counts the tokens of an answer."""
        if bucket := self._bucket(key, "tokens", key.tokens_per_minute):
            bucket.take(tokens, self._clock())

    def _bucket(self, key: Key, what: str, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        # By the key's hash: a key made again under a name that was revoked starts anew.
        found = self._buckets.get((key.digest, what))
        if found is None:
            found = self._buckets[key.digest, what] = Bucket(per_minute, self._clock())
        return found


class Queue:
    """Counts what every model works on, and turns away what comes on top."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, Counter[str]()

    @contextmanager
    def place(self, model: str) -> Iterator[None]:
        """A place among the requests to a model.

        Raises:
            RequestError: 503, there is none left.
        """
        if self.held[model] >= self.most:
            message = f"{model} has {self.most} requests waiting; try again in {QUEUE_WAIT_SECONDS} s"
            raise RequestError(503, message, wait=QUEUE_WAIT_SECONDS)
        self.held[model] += 1
        try:
            yield
        finally:
            self.held[model] -= 1


def bounded(receive: Receive, most_bytes: int = MOST_BODY_BYTES, seconds: float = BODY_SECONDS) -> Receive:
    """An ASGI `receive` that raises a `RequestError`: 413 when the body is too large, 408 when it takes too long."""
    end = asyncio.get_running_loop().time() + seconds
    size, whole = 0, False

    async def read() -> Message:
        nonlocal size, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError as error:
            raise RequestError(408, f"the request was not there within {seconds:.0f} s") from error
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > most_bytes:
            raise too_large(most_bytes)
        return message

    return read


def too_large(most_bytes: int = MOST_BODY_BYTES) -> RequestError:
    """413."""
    return RequestError(413, f"the request is larger than {most_bytes:,} bytes", "RequestTooLargeError")
