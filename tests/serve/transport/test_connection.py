"""The connection: every response part arrives, in order, at the request that it belongs to, and nothing else does."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from serve.transport import frames, gateway_end
from serve.transport.frames import WRITE_BUFFER_BYTES, Kind
from serve.transport.gateway_end import (
    PAUSE_BYTES,
    Address,
    End,
    GatewayConnection,
    ReplicaListener,
    RequestFailed,
    new_replica_id,
)
from serve.transport.messages import CompleteResponse, Endpoint, Part, ResponseStart, Usage
from serve.transport.replica_end import ReplicaConnection, connect

pytestmark = pytest.mark.anyio

# How long something is waited for: it only passes where something is wrong, also on a busy machine.
SECONDS = 60
PARTS = [ResponseStart("abc"), "data: é\n\n", "", "data: " + "x" * 300_000 + "\n\n", Usage(3, 5, "abc, def")]


class Answers:
    """Models whose answers depend on the request."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left = asyncio.Event()
        self.made = 0

    def models(self) -> Any:
        return {name: SimpleNamespace(answer=partial(self._answer, name)) for name in "ab"}

    async def _answer(self, model: str, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        self.asked.append((model, endpoint, body))
        if endpoint == "score":
            yield CompleteResponse(400, body)
            return
        if events := body.get("events"):
            for number in range(events):
                self.made = number + 1
                yield f"{number}:" + "x" * 1000
                await asyncio.sleep(0)
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
    """Returns a listener, the address to connect to, and a queue of the connections that are made."""
    listener, connections = ReplicaListener(), asyncio.Queue[GatewayConnection]()
    await listener.open("127.0.0.1")
    return listener, listener.address(connections.put_nowait), connections


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[GatewayConnection, Answers, ReplicaConnection]]:
    listener, address, connections = await listening()
    answers, name = Answers(), new_replica_id()
    replica = await connect(address, name, answers.models())
    gateway = await asyncio.wait_for(connections.get(), SECONDS)
    assert gateway.replica_id == name
    yield gateway, answers, replica
    listener.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.01)


async def settled(answers: Answers) -> int:
    """Returns the number of parts that were made, once there are some and no further ones are made."""
    await until(lambda: answers.made > 0)
    made = -1
    async with asyncio.timeout(SECONDS):
        while made != answers.made:
            made = answers.made
            await asyncio.sleep(0.3)
    return made


async def taken(queue: asyncio.Queue) -> list[Any]:
    items = []
    while not isinstance(item := await asyncio.wait_for(queue.get(), SECONDS), End):
        if isinstance(item, Exception):
            return [*items, type(item)]
        items.append(item)
    return items


async def test_many_answers_share_one_connection() -> None:
    async with connected() as (gateway, answers, _):
        body = {"prompt": "é" * 100_000}
        with (
            gateway.request("a", "completions", body) as one,
            gateway.request("b", "score", {"a": [1]}) as two,
            gateway.request("a", "chat/completions", body) as three,
        ):
            found = [await taken(queue) for queue in (three, one, two)]
        assert found == [PARTS, PARTS, [CompleteResponse(400, {"a": [1]})]]
        assert answers.asked == [
            ("a", "completions", body),
            ("b", "score", {"a": [1]}),
            ("a", "chat/completions", body),
        ]
        assert gateway.pending == 0


async def test_an_answer_that_fails_ends_alone() -> None:
    async with connected() as (gateway, _, _):
        with gateway.request("a", "completions", {"fail": True}) as one, gateway.request("a", "completions", {}) as two:
            assert await taken(one) == [*PARTS, RequestFailed]
            assert await taken(two) == PARTS


async def test_a_request_whose_caller_is_gone_is_cancelled() -> None:
    async with connected() as (gateway, answers, _):
        with gateway.request("a", "completions", {"wait": True}) as parts:
            assert await parts.get() == PARTS[0]
        await asyncio.wait_for(answers.left.wait(), SECONDS)
        with gateway.request("a", "score", {}) as parts:
            assert await taken(parts) == [CompleteResponse(400, {})]


async def test_a_broken_connection_fails_all_pending_requests() -> None:
    async with connected() as (gateway, answers, replica):
        with (
            gateway.request("a", "completions", {"wait": True}) as one,
            gateway.request("a", "completions", {"wait": True}) as two,
        ):
            await until(lambda: one.qsize() == two.qsize() == len(PARTS))
            gateway.transport.abort()
            assert await taken(one) == await taken(two) == [*PARTS, ConnectionError]
        await asyncio.wait_for(answers.left.wait(), SECONDS)
        assert replica.lost
        assert not gateway.ready
        with pytest.raises(ConnectionError), gateway.request("a", "completions", {}):
            pass


async def test_a_draining_replica_answers_its_pending_requests() -> None:
    async with connected() as (gateway, _, replica):
        with gateway.request("a", "completions", {}) as parts:
            assert await parts.get() == PARTS[0]
            draining = asyncio.create_task(replica.drain())
            assert await taken(parts) == PARTS[1:]
            assert gateway.draining
            assert not gateway.ready
        await asyncio.wait_for(draining, SECONDS)
        await until(lambda: gateway.lost)
        await replica.drain()


async def test_a_machine_that_is_gone_is_noticed() -> None:
    async with connected() as (gateway, _, replica):
        for end in (gateway, replica):
            opened = end.transport.get_extra_info("socket")
            assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


async def test_a_connection_without_the_secret_is_closed() -> None:
    listener, address, connections = await listening()
    for secret in (bytes(32), address.secret[:31] + b"?"):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(secret + new_replica_id())
        assert await asyncio.wait_for(reader.read(), SECONDS) == b""
        writer.close()
    assert connections.empty()
    # All replicas of a deployment have the same secret.
    names = [new_replica_id(), new_replica_id()]
    for name in names:
        await connect(address, name, Answers().models())
    assert [(await asyncio.wait_for(connections.get(), SECONDS)).replica_id for _ in names] == names
    listener.close()


async def test_a_connection_without_a_greeting_is_closed_in_time_and_few_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_end, "GREETING_SECONDS", 1.0)
    monkeypatch.setattr(gateway_end, "MAX_GREETINGS", 3)
    listener, address, connections = await listening()
    begun = [await asyncio.open_connection(address.host, address.port) for _ in range(5)]
    begun[0][1].write(address.secret[:20])
    # Connections above the limit end at once, and the others when their time is over.
    async with asyncio.timeout(SECONDS):
        for reader, _ in begun[::-1]:
            with suppress(ConnectionError):
                assert await reader.read() == b""
    for _, writer in begun:
        writer.close()
    await connect(address, new_replica_id(), Answers().models())
    gateway = await asyncio.wait_for(connections.get(), SECONDS)
    await asyncio.sleep(1.2)
    assert gateway.ready
    listener.close()


async def test_a_frame_of_gigabytes_closes_the_connection_before_it_is_read() -> None:
    async with connected() as (gateway, _, replica):
        replica.transport.write(struct.pack("!IQB", (1 << 32) - 1, 0, Kind.EVENT) + bytes(100_000))
        await until(lambda: gateway.lost)


async def test_an_unread_response_is_held_up_in_the_replica_alone() -> None:
    async with connected() as (gateway, answers, _):
        count = 20 * PAUSE_BYTES // 1000
        with gateway.request("a", "completions", {"events": count}) as unread:
            await until(lambda: answers.made >= PAUSE_BYTES // 1200)
            held = await settled(answers)
            assert held * 1000 < PAUSE_BYTES + 2 * WRITE_BUFFER_BYTES
            with gateway.request("b", "completions", {}) as read:
                assert await taken(read) == PARTS
            assert answers.made == held
            assert [item.partition(":")[0] for item in await taken(unread)] == [str(one) for one in range(count)]


async def test_a_response_that_is_held_up_can_be_cancelled() -> None:
    async with connected() as (gateway, answers, _):
        with gateway.request("a", "completions", {"events": 10_000}) as unread:
            await asyncio.sleep(0.1)
        assert unread.cancelled
        assert await asyncio.wait_for(unread.cancelled, SECONDS) == Usage(0, 0)
        assert answers.made < 10_000
        assert gateway.pending == 0


async def test_a_gateway_that_reads_nothing_holds_the_replica_up() -> None:
    async with connected() as (gateway, answers, replica):
        gateway.transport.pause_reading()
        with gateway.request("a", "completions", {"events": 100_000}) as parts:
            assert await settled(answers) < 50_000
            assert replica.transport.get_write_buffer_size() < 2 * WRITE_BUFFER_BYTES
            gateway.transport.resume_reading()
            for number in range(10_000):
                assert (await asyncio.wait_for(parts.get(), SECONDS)).startswith(f"{number}:")


async def test_a_part_that_no_frame_holds_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 200_000)
    async with connected() as (gateway, _, _):
        with gateway.request("a", "completions", {}) as large, gateway.request("a", "score", {}) as small:
            assert (await taken(large))[-1] is RequestFailed
            assert await taken(small) == [CompleteResponse(400, {})]
        assert gateway.ready
