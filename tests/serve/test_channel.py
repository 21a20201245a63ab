"""The channel: every part of an answer arrives, in order, at the request that it belongs to, and nothing else does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve.channel import End, Inbox, Line, RequestFailed, attend
from serve.parts import Endpoint, Opening, Part, Reply, Usage

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Ray Serve runs on uvloop where it is installed."""
    return "asyncio", {"use_uvloop": request.param}


PARTS = [Opening("abc"), "data: é\n\n", "", "data: " + "x" * 300_000 + "\n\n", Usage(3, 5, "abc, def")]


class Answers:
    """What it is asked decides how it answers."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left = asyncio.Event()

    async def __call__(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        self.asked.append((endpoint, body))
        if endpoint == "score":
            yield Reply(400, body)
            return
        try:
            for part in PARTS:
                yield part
                await asyncio.sleep(0)
            if body.get("fail"):
                raise RuntimeError("the engine is dead")
            if body.get("wait"):
                await asyncio.sleep(60)
        finally:
            self.left.set()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Line, Answers, "asyncio.Task[None]"]]:
    inbox, answers = Inbox(), Answers()
    await inbox.open("127.0.0.1")
    with inbox.expecting() as (address, arriving):
        attending = asyncio.create_task(attend(address, answers))
        line = await asyncio.wait_for(arriving, 5)
    yield line, answers, attending
    inbox.close()
    await asyncio.wait_for(attending, 5)


async def taken(queue: asyncio.Queue) -> list[Any]:
    items = []
    while not isinstance(item := await asyncio.wait_for(queue.get(), 5), End):
        if isinstance(item, Exception):
            return [*items, type(item)]
        items.append(item)
    return items


async def test_many_answers_share_one_connection() -> None:
    async with connected() as (line, answers, _):
        body = {"prompt": "é" * 100_000}
        with (
            line.asking("completions", body) as one,
            line.asking("score", {"a": [1]}) as two,
            line.asking("chat/completions", body) as three,
        ):
            found = [await taken(queue) for queue in (three, one, two)]
        assert found == [PARTS, PARTS, [Reply(400, {"a": [1]})]]
        assert answers.asked == [("completions", body), ("score", {"a": [1]}), ("chat/completions", body)]


async def test_an_answer_that_fails_ends_alone() -> None:
    async with connected() as (line, _, _):
        with line.asking("completions", {"fail": True}) as one, line.asking("completions", {}) as two:
            assert await taken(one) == [*PARTS, RequestFailed]
            assert await taken(two) == PARTS


async def test_work_ends_when_nobody_waits_for_it() -> None:
    async with connected() as (line, answers, _):
        with line.asking("completions", {"wait": True}) as parts:
            assert await parts.get() == PARTS[0]
        await asyncio.wait_for(answers.left.wait(), 5)
        with line.asking("score", {}) as parts:
            assert await taken(parts) == [Reply(400, {})]


async def test_a_broken_connection_is_told_to_all_who_wait() -> None:
    async with connected() as (line, answers, attending):
        with line.asking("completions", {"wait": True}) as one, line.asking("completions", {"wait": True}) as two:
            await asyncio.sleep(0.1)
            line.transport.abort()
            assert await taken(one) == await taken(two) == [*PARTS, ConnectionError]
        await asyncio.wait_for(answers.left.wait(), 5)
        await asyncio.wait_for(attending, 5)
        with pytest.raises(ConnectionError), line.asking("completions", {}):
            pass


async def test_without_the_secret_nobody_is_heard() -> None:
    inbox = Inbox()
    await inbox.open("127.0.0.1")
    with inbox.expecting() as (address, arriving):
        for secret in (bytes(32), address.secret[:31] + b"?"):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(secret)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert not arriving.done()
        attending = asyncio.create_task(attend(address, Answers()))
        await asyncio.wait_for(arriving, 5)
        # A secret is good for one connection.
        await asyncio.wait_for(attend(address, Answers()), 5)
    await asyncio.wait_for(attend(address, Answers()), 5)
    inbox.close()
    await asyncio.wait_for(attending, 5)
