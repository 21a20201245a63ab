"""A model behind a channel: what the gateway sees when a replica answers, refuses, dies or is left."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serve import remote
from serve.channel import Address, Inbox, attend
from serve.errors import RequestError
from serve.parts import Endpoint, Opening, Part, Reply, Usage
from serve.remote import RemoteModel
from serve.replica import Desk

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Ray Serve runs on uvloop where it is installed."""
    return "asyncio", {"use_uvloop": request.param}


class Counting:
    """Counts up to the number asked for; dies at 3 if told to, and waits for ever at 5, or before it counts."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        try:
            yield Opening("abc")
            if endpoint == "score":
                yield Reply(200, body)
                return
            if body.get("wait"):
                await asyncio.sleep(60)
            for number in range(body["to"]):
                if number == 3 and body.get("die"):
                    raise RayActorError
                if number == 5:
                    await asyncio.sleep(60)
                yield f"data: {number}\n\n"
            yield Usage(1, body["to"])
        finally:
            self.left.set()


class Method:
    """Stands for a deployment's method where there is no Ray: the same call as a task of this process."""

    def __init__(self, method: Any) -> None:
        self.remote = lambda *arguments: asyncio.create_task(method(*arguments))


class Handle:
    """Stands for a deployment; `attend` can be replaced."""

    def __init__(self, desk: Desk) -> None:
        self.calls = 0
        self.does = desk.attend
        self.attend = Method(self._attend)

    async def _attend(self, model: str, address: Address) -> None:
        self.calls += 1
        await self.does(model, address)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[RemoteModel, Counting, Handle]]:
    inbox, model = Inbox(), Counting()
    await inbox.open("127.0.0.1")
    handle = Handle(Desk({"count": model}))
    yield RemoteModel(handle, "count", inbox), model, handle
    inbox.close()


def counted(to: int) -> list[Part]:
    return [Opening("abc"), *(f"data: {number}\n\n" for number in range(to)), Usage(1, to)]


async def test_answers_come_whole_and_to_whom_they_belong() -> None:
    async with served() as (model, _, handle):

        async def count(to: int) -> list[Part]:
            return [part async for part in model.answer("completions", {"to": to})]

        # The first to ask gives up: the connection that it began is made for the others.
        first = asyncio.create_task(count(5))
        await asyncio.sleep(0)
        first.cancel()
        for to, parts in enumerate(await asyncio.gather(*map(count, range(5)))):
            assert parts == counted(to)
        assert [part async for part in model.answer("score", {"a": 1})] == [Opening("abc"), Reply(200, {"a": 1})]
        assert handle.calls == 1


async def test_an_answer_that_fails_is_503_after_what_it_has_sent() -> None:
    async with served() as (model, _, _):
        parts = model.answer("completions", {"to": 9, "die": True})
        assert [await anext(parts) for _ in range(4)][-1] == "data: 2\n\n"
        with pytest.raises(RequestError) as failed:
            await anext(parts)
        assert (failed.value.status_code, failed.value.headers) == (503, {"Retry-After": "1"})


async def test_work_ends_when_its_client_goes() -> None:
    async with served() as (model, replica, _):
        parts = model.answer("completions", {"to": 9})
        assert [await anext(parts) for _ in range(3)][-1] == "data: 1\n\n"
        await parts.aclose()
        await asyncio.wait_for(replica.left.wait(), 5)


async def test_a_replica_that_is_gone_is_503_and_its_successor_is_found() -> None:
    async with served() as (model, _, handle):
        gone = asyncio.Event()

        async def dies(_: str, address: Address) -> None:
            attending = asyncio.create_task(attend(address, Counting().answer))
            await gone.wait()
            attending.cancel()
            raise RayActorError

        lives, handle.does = handle.does, dies
        parts = model.answer("completions", {"to": 9})
        assert [await anext(parts) for _ in range(6)][-1] == "data: 4\n\n"
        handle.does = lives
        gone.set()
        with pytest.raises(RequestError) as failed:
            await anext(parts)
        assert failed.value.status_code == 503
        assert [part async for part in model.answer("completions", {"to": 2})] == counted(2)
        assert handle.calls == 2


@pytest.mark.parametrize("deaths", [1, 2])
async def test_a_request_that_nobody_has_begun_to_answer_is_asked_once_more(deaths: int) -> None:
    async with served() as (model, _, handle):
        asked = {"to": 2, "wait": True}

        async def dies(_: str, address: Address) -> None:
            if handle.calls > deaths:
                asked.pop("wait")
                await lives("count", address)
            attending = asyncio.create_task(attend(address, Counting().answer))
            # The request has come, and its opening has gone.
            await asyncio.sleep(0.1)
            attending.cancel()
            raise RayActorError

        lives, handle.does = handle.does, dies
        if deaths == 1:
            answer = [part async for part in model.answer("completions", asked)]
            assert answer == [Opening("abc"), *counted(2)]
        else:
            with pytest.raises(RequestError) as failed:
                [part async for part in model.answer("completions", asked)]
            assert failed.value.status_code == 503
        assert handle.calls == 2


async def test_a_machine_that_vanishes_is_noticed_by_the_call_to_it() -> None:
    async with served() as (model, _, handle):
        gone = asyncio.Event()

        async def vanishes(_: str, address: Address) -> None:
            # Its connection stays open: nothing closes it.
            keep.append(asyncio.create_task(attend(address, Counting().answer)))
            await gone.wait()
            raise RayActorError

        keep: list[asyncio.Task[None]] = []
        handle.does = vanishes
        parts = model.answer("completions", {"to": 9})
        assert [await anext(parts) for _ in range(6)][-1] == "data: 4\n\n"
        gone.set()
        with pytest.raises(RequestError):
            await asyncio.wait_for(anext(parts), 5)


@pytest.mark.parametrize("way", ["cannot connect", "is dead", "does not come"])
async def test_a_replica_that_does_not_connect_in_time_is_503(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(remote, "CONNECT_AGAIN_SECONDS", 0.15)

    async def does(_: str, address: Address) -> None:
        if way == "is dead":
            raise RayActorError
        if way == "does not come":
            await asyncio.sleep(60)

    async with served() as (model, _, handle):
        lives, handle.does = handle.does, does
        asked = [anext(model.answer("completions", {"to": 1})) for _ in range(3)]
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert [error.status_code for error in found] == [503] * 3
        assert handle.calls == (1 if way != "is dead" else 2)
        handle.does = lives
        assert [part async for part in model.answer("completions", {"to": 1})] == counted(1)
