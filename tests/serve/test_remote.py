"""A model behind a channel: what the gateway sees when a replica answers, refuses, dies or is left."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serve.channel import Inbox
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
    """Counts up to the number asked for; dies at 3 if told to, and waits for ever at 5."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        try:
            yield Opening("abc")
            if endpoint == "score":
                yield Reply(200, body)
                return
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
    def __init__(self, desk: Desk) -> None:
        self.answer_to = Method(desk.answer_to)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[RemoteModel, Counting]]:
    inbox, model = Inbox(), Counting()
    desk, address = Desk({"count": model}), await inbox.open("127.0.0.1")
    yield RemoteModel(Handle(desk), "count", inbox, address), model


async def test_answers_come_whole_and_to_whom_they_belong() -> None:
    async with served() as (model, _):

        async def count(to: int) -> list[Part]:
            return [part async for part in model.answer("completions", {"to": to})]

        for to, parts in enumerate(await asyncio.gather(*map(count, range(5)))):
            assert parts == [Opening("abc"), *(f"data: {number}\n\n" for number in range(to)), Usage(1, to)]
        assert [part async for part in model.answer("score", {"a": 1})] == [Opening("abc"), Reply(200, {"a": 1})]


async def test_a_replica_that_dies_is_503_after_what_it_has_sent() -> None:
    async with served() as (model, _):
        parts = model.answer("completions", {"to": 9, "die": True})
        assert [await anext(parts) for _ in range(4)][-1] == "data: 2\n\n"
        with pytest.raises(RequestError) as failed:
            await anext(parts)
        assert (failed.value.status_code, failed.value.headers) == (503, {"Retry-After": "1"})


async def test_work_ends_when_its_client_goes() -> None:
    async with served() as (model, replica):
        parts = model.answer("completions", {"to": 9})
        assert [await anext(parts) for _ in range(3)][-1] == "data: 1\n\n"
        await parts.aclose()
        await asyncio.wait_for(replica.left.wait(), 5)
