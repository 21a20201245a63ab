"""Limits: how much a key may use in a minute, how many requests a model takes at once, and the size and duration of a
request's body."""

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from starlette.types import Message, Receive

from cluster.keys import Key
from serve.errors import RequestError

# Reading JSON holds up all clients: 10 ms for 1 MB. A batch of prompts that fill the context takes some 8 bytes a token
# each, as text or as token ids.
MIN_BODY_BYTES, MAX_BODY_BYTES = 1 << 20, 10 << 20
BODY_BYTES_PER_TOKEN = 256
BODY_SECONDS = 30.0
RETRY_SECONDS = 1
# How often the gateways of a server report the use of keys to each other.
SHARE_SECONDS = 1.0


class TokenBucket:
    """A token bucket that refills evenly and is full after a minute. Its level may be negative, because the cost of an
    answer is known only afterwards; then nothing is admitted until the debt is paid.

    Args:
        per_minute: its size, and the amount that it gains in a minute.
        now: the time in seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute, self._level, self._updated = per_minute, float(per_minute), now

    def wait(self, amount: float, now: float) -> float:
        """Returns the seconds until it holds an amount; 0 if it does already."""
        self._refill(now)
        return max(0.0, (amount - self._level) * 60 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """Removes an amount, to below zero if need be."""
        self._refill(now)
        self._level -= amount

    def _refill(self, now: float) -> None:
        self._level = min(self.per_minute, self._level + (now - self._updated) * self.per_minute / 60)
        self._updated = now


@dataclass(frozen=True)
class KeyUse:
    """The use of the keys by the requests of one gateway, as the gateways of a server report it to each other.

    Each gateway admits requests by its own counts and by the last reports of the others. Within `SHARE_SECONDS` several
    gateways may together admit more than a key's limit: at the worst, each the whole rest of it. The excess of tokens
    and requests a minute is a debt that is taken off the next minutes.

    Attributes:
        gateway: a name of the process, whose counts begin with it.
        taken: the limit a minute and the total taken of it so far, by the key's hash and the limit's name.
        running: the requests in progress, by the key's hash.
        budgets: the tokens used and reserved of budgets, of former processes too, by the key's hash.
    """

    gateway: str
    taken: Mapping[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, int] = field(default_factory=dict)


class KeyLimits:
    """The requests and tokens per minute of every key, and its requests at once, in this process and, as far as they
    were heard of, in the other gateways of the server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._taken = defaultdict[tuple[str, str], float](float)
        self._running = Counter[str]()
        self._others: dict[int, KeyUse] = {}

    def start_request(self, key: Key) -> None:
        """Counts one request, until `end_request`.

        Raises:
            RequestError: 429, the key has used up its requests or tokens, or has too many requests at once;
                `Retry-After` says for how long.
        """
        now = self._clock()
        running = self._running[key.digest] + sum(other.running.get(key.digest, 0) for other in self._others.values())
        if key.max_parallel_requests is not None and running >= key.max_parallel_requests:
            raise _too_many(f"this key may have {key.max_parallel_requests} requests at once", RETRY_SECONDS)
        requests = self._bucket(key, "requests", key.requests_per_minute)
        tokens = self._bucket(key, "tokens", key.tokens_per_minute)
        for what, bucket in (("requests", requests), ("tokens", tokens)):
            if bucket and (wait := bucket.wait(1, now)):
                raise _too_many(f"this key may use {bucket.per_minute} {what} a minute", wait)
        self._take(key, "requests", requests, 1)
        self._running[key.digest] += 1

    def end_request(self, key: Key) -> None:
        """Removes one request from those in progress."""
        self._running[key.digest] -= 1

    def reserve_tokens(self, key: Key, tokens: int) -> None:
        """Takes the most tokens that a request may use, before it starts: requests at the same time see it.

        A request that may use more than a minute's tokens starts when the key has used none of them.

        Raises:
            RequestError: 429, the key has fewer left; `Retry-After` says for how long.
        """
        bucket, now = self._bucket(key, "tokens", key.tokens_per_minute), self._clock()
        if bucket is None:
            return
        if wait := bucket.wait(min(tokens, bucket.per_minute), now):
            raise _too_many(
                f"this key may use {bucket.per_minute} tokens a minute, and this request up to {tokens}: give it a "
                "smaller `max_tokens`",
                wait,
            )
        self._take(key, "tokens", bucket, tokens)

    def settle_tokens(self, key: Key, reserved: int, used: int) -> None:
        """Replaces the reservation of a request by its use."""
        self._take(key, "tokens", self._bucket(key, "tokens", key.tokens_per_minute), used - reserved)

    def use(self) -> KeyUse:
        """Returns the use of keys by the requests of this process so far, without a name and budgets."""
        taken = {limit: (self._buckets[limit].per_minute, amount) for limit, amount in self._taken.items()}
        return KeyUse("", taken, dict(+self._running))

    def merge_peer(self, number: int, use: KeyUse | None) -> None:
        """Counts the use of keys in another gateway since its last report.

        Args:
            number: the number of the gateway, which stays when its process is replaced.
            use: its counts; None if it does not answer: its requests in progress have ended with it.
        """
        before = self._others.get(number)
        if use is None:
            if before:
                self._others[number] = replace(before, running={})
            return
        self._others[number] = use
        if before is None:
            # The first report is only the base of later ones: its use was before this process heard of that gateway.
            return
        base = before.taken if before.gateway == use.gateway else {}
        for limit, (per_minute, amount) in use.taken.items():
            if more := amount - base.get(limit, (per_minute, 0.0))[1]:
                self._bucket_of(limit, per_minute).take(more, self._clock())

    def _take(self, key: Key, what: str, bucket: TokenBucket | None, amount: float) -> None:
        if bucket:
            bucket.take(amount, self._clock())
            self._taken[key.digest, what] += amount

    def _bucket(self, key: Key, what: str, per_minute: int | None) -> TokenBucket | None:
        # By the key's hash: a new key under the name of a revoked one starts anew.
        return None if per_minute is None else self._bucket_of((key.digest, what), per_minute)

    def _bucket_of(self, limit: tuple[str, str], per_minute: int) -> TokenBucket:
        found = self._buckets.get(limit)
        if found is None:
            found = self._buckets[limit] = TokenBucket(per_minute, self._clock())
        return found


def _too_many(message: str, wait: float) -> RequestError:
    seconds = math.ceil(wait)
    return RequestError(429, f"{message}; try again in {seconds} s", "RateLimitError", retry_after=seconds)


class ConcurrencyLimit:
    """Counts the requests in progress for every model, and refuses those above the limit.

    Args:
        limit: the most requests of one model at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._running = limit, Counter[str]()

    @contextmanager
    def slot(self, model: str) -> Iterator[None]:
        """Holds one of a model's slots for as long as the context lasts.

        Raises:
            RequestError: 503, no slot is free.
        """
        if self._running[model] >= self._limit:
            message = f"{model} has {self._limit} requests waiting; try again in {RETRY_SECONDS} s"
            raise RequestError(503, message, retry_after=RETRY_SECONDS)
        self._running[model] += 1
        try:
            yield
        finally:
            self._running[model] -= 1


def bounded(receive: Receive, max_bytes: int, seconds: float = BODY_SECONDS) -> Receive:
    """Returns an ASGI `receive` that raises a `RequestError`: 413 for a body that is too large, 408 for a slow one."""
    end = asyncio.get_running_loop().time() + seconds
    size, complete = 0, False

    async def read() -> Message:
        nonlocal size, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError as error:
            raise RequestError(408, f"the request was not complete within {seconds:.0f} s") from error
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > max_bytes:
            raise body_too_large(max_bytes)
        return message

    return read


def body_limit(context: int) -> int:
    """Returns the most bytes of a request's body to models with a context of so many tokens."""
    return min(MAX_BODY_BYTES, max(MIN_BODY_BYTES, context * BODY_BYTES_PER_TOKEN))


def body_too_large(max_bytes: int) -> RequestError:
    """Returns the 413 for a body above the limit."""
    return RequestError(413, f"the request is larger than {max_bytes:,} bytes", "RequestTooLargeError")
