"""Limits of keys against a clock that the test moves, slots of models, and the size and duration of a body."""

import asyncio
from dataclasses import replace

import pytest
from starlette.types import Message

from cluster.keys import Key
from serve.errors import RequestError
from serve.http.limits import ConcurrencyLimit, KeyLimits, TokenBucket, bounded

pytestmark = pytest.mark.anyio


def key(requests: int | None = None, tokens: int | None = None, digest: str = "a") -> Key:
    return Key("ann", ("chat",), digest, 0.0, None, requests, tokens)


def test_a_bucket_follows_its_closed_form() -> None:
    """Level after spending s at once and waiting t seconds: min(size, size - s + t size / 60)."""
    for size, spent, waited in ((60, 60, 0), (60, 60, 1), (60, 90, 10), (6, 6, 30), (600, 10, 500)):
        bucket = TokenBucket(size, now=0.0)
        bucket.take(spent, 0.0)
        level = min(size, size - spent + waited * size / 60)
        assert bucket.wait(1, float(waited)) == pytest.approx(max(0.0, (1 - level) * 60 / size))


def test_requests_a_minute() -> None:
    now = [0.0]
    limits = KeyLimits(lambda: now[0])
    for _ in range(3):
        limits.start_request(key(requests=3))
    with pytest.raises(RequestError, match="3 requests a minute") as refused:
        limits.start_request(key(requests=3))
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "20"})
    limits.start_request(key(requests=3, digest="another key"))
    limits.start_request(key())
    now[0] = 20.0
    limits.start_request(key(requests=3))
    with pytest.raises(RequestError):
        limits.start_request(key(requests=3))
    # A whole minute without requests gives three again and not more.
    now[0] = 1_000.0
    for _ in range(3):
        limits.start_request(key(requests=3))
    with pytest.raises(RequestError):
        limits.start_request(key(requests=3))


def test_tokens_a_minute_are_paid_afterwards() -> None:
    now = [0.0]
    limits = KeyLimits(lambda: now[0])
    limits.start_request(key(tokens=60))
    limits.settle_tokens(key(tokens=60), 0, 100)
    with pytest.raises(RequestError, match="60 tokens a minute") as refused:
        limits.start_request(key(tokens=60))
    # 40 below zero, and it needs one: 41 tokens at one a second.
    assert refused.value.headers == {"Retry-After": "41"}
    now[0] = 41.0
    limits.start_request(key(tokens=60))


def test_tokens_are_reserved_until_it_is_known_how_many_were_used() -> None:
    now, one = [0.0], key(tokens=60)
    limits = KeyLimits(lambda: now[0])
    limits.reserve_tokens(one, 40)
    with pytest.raises(RequestError, match="up to 40") as refused:
        limits.reserve_tokens(one, 40)
    # 20 are left, and 40 are needed.
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "20"})
    limits.settle_tokens(one, 40, 10)
    limits.reserve_tokens(one, 40)
    limits.settle_tokens(one, 40, 50)
    limits.reserve_tokens(key(), 10**9)


def test_a_request_for_more_than_a_minute_holds_starts_from_a_full_one() -> None:
    now, one = [0.0], key(tokens=60)
    limits = KeyLimits(lambda: now[0])
    limits.reserve_tokens(one, 600)
    for tokens in (1, 600):
        with pytest.raises(RequestError):
            limits.reserve_tokens(one, tokens)
    limits.settle_tokens(one, 600, 90)
    with pytest.raises(RequestError) as refused:
        limits.reserve_tokens(one, 600)
    assert refused.value.headers == {"Retry-After": "90"}
    now[0] = 90.0
    limits.reserve_tokens(one, 600)


def test_a_slot_is_free_again_afterwards() -> None:
    limit = ConcurrencyLimit(2)
    with limit.slot("a"), limit.slot("a"), limit.slot("b"):
        with pytest.raises(RequestError) as refused, limit.slot("a"):
            pass
        assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "1"})
    with pytest.raises(KeyError), limit.slot("a"):
        raise KeyError
    with limit.slot("a"), limit.slot("a"):
        pass


async def test_a_body_has_a_size_and_a_deadline() -> None:
    async def piece() -> Message:
        return {"type": "http.request", "body": b"12345", "more_body": True}

    async def never() -> Message:
        await asyncio.sleep(60)
        return {}

    read = bounded(piece, max_bytes=10)
    assert [(await read())["body"] for _ in range(2)] == [b"12345"] * 2
    with pytest.raises(RequestError) as large:
        await read()
    with pytest.raises(RequestError) as slow:
        await bounded(never, 10, seconds=0.05)()
    assert (large.value.status_code, slow.value.status_code) == (413, 408)


async def test_waiting_for_a_client_to_leave_has_no_deadline() -> None:
    messages = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        message = next(messages)
        # The body is there at once, and the client leaves long after the body's deadline.
        await asyncio.sleep(0.3 if message["type"] == "http.disconnect" else 0)
        return message

    read = bounded(receive, 10, seconds=0.2)
    assert (await read())["body"] == b"{}"
    assert (await read())["type"] == "http.disconnect"


def test_tokens_admitted_by_another_gateway_count_towards_the_limit() -> None:
    """A gateway counts the use of another from when it first heard of it, and all of a process that replaces it."""
    now = [0.0]
    here, there, later = (KeyLimits(lambda: now[0]) for _ in range(3))
    one = replace(key(10, 100), max_parallel_requests=3)

    def merge(limits: KeyLimits, name: str) -> None:
        here.merge_peer(1, replace(limits.use(), gateway=name))

    there.start_request(one)
    merge(there, "old")
    for _ in range(2):
        there.start_request(one)
    there.reserve_tokens(one, 90)
    merge(there, "old")
    merge(there, "old")
    with pytest.raises(RequestError, match="3 requests at once"):
        here.start_request(one)
    with pytest.raises(RequestError, match="100 tokens a minute"):
        here.reserve_tokens(one, 11)
    here.reserve_tokens(one, 10)
    there.settle_tokens(one, 90, 20)
    merge(there, "old")
    here.reserve_tokens(one, 60)
    # It dies, and its requests with it. The next process counts from zero.
    here.merge_peer(1, None)
    for _ in range(2):
        here.start_request(one)
        here.end_request(one)
    for _ in range(6):
        later.start_request(one)
        later.end_request(one)
    merge(later, "new")
    with pytest.raises(RequestError, match="10 requests a minute"):
        here.start_request(one)


def test_a_gateway_without_news_of_a_key_learns_its_limit_with_its_use() -> None:
    now = [0.0]
    here, there = KeyLimits(lambda: now[0]), KeyLimits(lambda: now[0])
    here.merge_peer(1, replace(there.use(), gateway="other"))
    one = key(tokens=60)
    there.reserve_tokens(one, 60)
    here.merge_peer(1, replace(there.use(), gateway="other"))
    with pytest.raises(RequestError) as refused:
        here.reserve_tokens(one, 30)
    assert refused.value.headers == {"Retry-After": "30"}
