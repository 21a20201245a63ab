"""The channel of answers: every part arrives, in order, at the request that it belongs to, and nothing else does."""

import asyncio

import pytest

from serve.channel import End, Inbox, Outbox
from serve.parts import Opening, Reply, Usage

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Ray Serve runs on uvloop where it is installed."""
    return "asyncio", {"use_uvloop": request.param}


PARTS = [
    Opening("abc"),
    "data: é\n\n",
    "",
    "data: " + "x" * 300_000 + "\n\n",
    Usage(3, 5, "abc, def"),
    Reply(400, {"a": [1]}),
]


async def taken(queue: asyncio.Queue) -> list:
    items = []
    while not isinstance(item := await asyncio.wait_for(queue.get(), 5), End):
        items.append(item)
    return items


async def test_many_answers_share_one_connection() -> None:
    inbox, outbox = Inbox(), Outbox()
    address = await inbox.open("127.0.0.1")
    writers = await asyncio.gather(*(outbox.to(address) for _ in range(5)))
    assert len(set(map(id, writers))) == 1
    with inbox.expecting() as (one, first), inbox.expecting() as (two, second):
        for part in PARTS:
            writers[0].send(one, part)
            writers[0].send(two, part)
            await asyncio.sleep(0)
        writers[0].send(99, "for nobody")
        writers[0].end(two)
        writers[0].end(one)
        assert await taken(first) == await taken(second) == PARTS
    writers[0].transport.close()


async def test_a_broken_connection_is_told_to_those_who_wait_and_made_again() -> None:
    inbox, outbox = Inbox(), Outbox()
    address = await inbox.open("127.0.0.1")
    with inbox.expecting() as (number, queue), inbox.expecting() as (_, other):
        writer = await outbox.to(address)
        writer.send(number, "data: 1\n\n")
        assert await queue.get() == "data: 1\n\n"
        writer.transport.abort()
        assert isinstance(await asyncio.wait_for(queue.get(), 5), ConnectionError)
        with pytest.raises(ConnectionError):
            writer.send(number, "data: 2\n\n")
        again = await outbox.to(address)
        again.send(number, "data: 3\n\n")
        assert await queue.get() == "data: 3\n\n"
        assert other.empty()
        again.transport.close()


async def test_without_the_secret_nobody_is_heard() -> None:
    inbox = Inbox()
    address = await inbox.open("127.0.0.1")
    with inbox.expecting() as (number, queue):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(bytes(32) + b"\x00\x00\x00\x01" + number.to_bytes(8, "big") + b"\x00x")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert queue.empty()
        writer.close()
