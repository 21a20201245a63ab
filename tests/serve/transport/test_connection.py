"""The channel: every part of an answer arrives, in order, at the request that it belongs to, and nothing else does."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve.transport.connection import (
    Address,
    End,
    GatewayConnection,
    ReplicaConnection,
    ReplicaListener,
    RequestFailed,
    connect,
    new_name,
)
from serve.transport.messages import Endpoint, Part, Reply, ResponseStart, Usage

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Ray Serve runs on uvloop where it is installed."""
    return "asyncio", {"use_uvloop": request.param}


PARTS = [ResponseStart("abc"), "data: é\n\n", "", "data: " + "x" * 300_000 + "\n\n", Usage(3, 5, "abc, def")]


class Answers:
    """What it is asked decides how it answers."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left = asyncio.Event()

    async def __call__(self, model: str, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        self.asked.append((model, endpoint, body))
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


async def listening() -> tuple[ReplicaListener, Address, "asyncio.Queue[GatewayConnection]"]:
    """An inbox, the address to connect to, and the lines as they come."""
    inbox, lines = ReplicaListener(), asyncio.Queue[GatewayConnection]()
    await inbox.open("127.0.0.1")
    return inbox, inbox.address(lines.put_nowait), lines


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[GatewayConnection, Answers, ReplicaConnection]]:
    inbox, address, lines = await listening()
    answers, name = Answers(), new_name()
    counter = await connect(address, name, answers)
    line = await asyncio.wait_for(lines.get(), 5)
    assert line.replica == name
    yield line, answers, counter
    inbox.close()


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
            line.asking("a", "completions", body) as one,
            line.asking("b", "score", {"a": [1]}) as two,
            line.asking("a", "chat/completions", body) as three,
        ):
            found = [await taken(queue) for queue in (three, one, two)]
        assert found == [PARTS, PARTS, [Reply(400, {"a": [1]})]]
        assert answers.asked == [
            ("a", "completions", body),
            ("b", "score", {"a": [1]}),
            ("a", "chat/completions", body),
        ]
        assert line.requests == 0


async def test_an_answer_that_fails_ends_alone() -> None:
    async with connected() as (line, _, _):
        with line.asking("a", "completions", {"fail": True}) as one, line.asking("a", "completions", {}) as two:
            assert await taken(one) == [*PARTS, RequestFailed]
            assert await taken(two) == PARTS


async def test_work_ends_when_nobody_waits_for_it() -> None:
    async with connected() as (line, answers, _):
        with line.asking("a", "completions", {"wait": True}) as parts:
            assert await parts.get() == PARTS[0]
        await asyncio.wait_for(answers.left.wait(), 5)
        with line.asking("a", "score", {}) as parts:
            assert await taken(parts) == [Reply(400, {})]


async def test_a_broken_connection_is_told_to_all_who_wait() -> None:
    async with connected() as (line, answers, counter):
        with (
            line.asking("a", "completions", {"wait": True}) as one,
            line.asking("a", "completions", {"wait": True}) as two,
        ):
            await asyncio.sleep(0.1)
            line.transport.abort()
            assert await taken(one) == await taken(two) == [*PARTS, ConnectionError]
        await asyncio.wait_for(answers.left.wait(), 5)
        assert counter.lost
        assert not line.ready
        with pytest.raises(ConnectionError), line.asking("a", "completions", {}):
            pass


async def test_who_leaves_answers_what_it_has_been_asked() -> None:
    async with connected() as (line, _, counter):
        with line.asking("a", "completions", {}) as parts:
            assert await parts.get() == PARTS[0]
            leaving = asyncio.create_task(counter.leave())
            assert await taken(parts) == PARTS[1:]
            assert line.leaving
            assert not line.ready
        await asyncio.wait_for(leaving, 5)
        await asyncio.sleep(0.05)
        assert line.lost
        await counter.leave()


async def test_a_machine_that_is_gone_is_noticed() -> None:
    async with connected() as (line, _, counter):
        for end in (line, counter):
            connection = end.transport.get_extra_info("socket")
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


async def test_without_the_secret_nobody_is_heard() -> None:
    inbox, address, lines = await listening()
    for secret in (bytes(32), address.secret[:31] + b"?"):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(secret + new_name())
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert lines.empty()
    # Every replica of a deployment has the same one.
    names = [new_name(), new_name()]
    for name in names:
        await connect(address, name, Answers())
    assert [(await asyncio.wait_for(lines.get(), 5)).replica for _ in names] == names
    inbox.close()
