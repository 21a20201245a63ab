"""A model behind connections, as the gateway sees it while replicas answer, refuse, die, come, go or sleep."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from serve.errors import RequestError
from serve.transport import pool
from serve.transport.gateway_end import ReplicaListener
from serve.transport.messages import (
    CompleteResponse,
    Part,
    PromotionResult,
    ResponseStart,
    Usage,
)
from serve.transport.pool import RemoteModel, ReplicaPool
from tests.serve.transport.scripted import MODEL, Counting, Dead, Faulty, Handle, Replica

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(pool, "RECONNECT_SECONDS", 0.1)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.05)


@asynccontextmanager
async def served(
    *models: Counting, start_seconds: float | None = None
) -> AsyncIterator[tuple[RemoteModel, Handle, ReplicaPool]]:
    listener = ReplicaListener()
    await listener.open("127.0.0.1")
    handle: Any = Handle(*map(Replica, models))
    found = ReplicaPool(handle, listener, start_seconds)
    maintenance = asyncio.create_task(found.maintain())
    yield RemoteModel(found, MODEL), handle, found
    maintenance.cancel()
    listener.close()


def counted(to: int) -> list[Part]:
    return [ResponseStart("abc"), *(f"data: {number}\n\n" for number in range(to)), Usage(1, to)]


async def ask(model: RemoteModel, to: int) -> list[Part]:
    return [part async for part in model.answer("completions", {"to": to})]


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def test_answers_come_whole_and_to_whom_they_belong() -> None:
    async with served(Counting()) as (model, handle, _):
        # The first request is cancelled: the connection that it started is still made for the others.
        first = asyncio.create_task(ask(model, 5))
        await asyncio.sleep(0)
        first.cancel()
        for to, parts in enumerate(await asyncio.gather(*(ask(model, to) for to in range(5)))):
            assert parts == counted(to)
        assert [part async for part in model.answer("score", {"a": 1})] == [
            ResponseStart("abc"),
            CompleteResponse(200, {"a": 1}),
        ]
        assert handle.calls == 1
        assert [await model.card() for _ in range(2)] == [{"id": MODEL}] * 2
        assert [await model.schemas() for _ in range(2)] == [{"completions": {}}] * 2
        assert handle.calls == 3


async def test_an_answer_that_fails_is_503_after_what_it_has_sent() -> None:
    async with served(Counting()) as (model, _, _):
        parts = model.answer("completions", {"to": 9, "fail": True})
        assert [await anext(parts) for _ in range(4)][-1] == "data: 2\n\n"
        with pytest.raises(RequestError) as failed:
            await anext(parts)
        assert (failed.value.status_code, failed.value.headers) == (503, {"Retry-After": "1"})


@pytest.mark.parametrize("waiting", [False, True])
async def test_work_ends_when_its_client_goes(waiting: bool) -> None:
    counting = Counting()
    async with served(counting) as (model, _, _):
        used: list[Awaitable[Usage | None]] = []
        parts = model.answer("completions", {"to": 9}, used.append)
        assert [await anext(parts) for _ in range(3)][-1] == "data: 1\n\n"
        assert await model.requests() == [1]
        await until(lambda: counting.counted == 5)
        if waiting:
            for _ in range(3):
                await anext(parts)
            following = asyncio.ensure_future(anext(parts))
            await asyncio.sleep(0)
            following.cancel()
            await asyncio.wait((following,))
        await parts.aclose()
        # All tokens that were computed until it stopped, and not those that were read.
        assert [await one for one in used] == [Usage(3, 5)]
        assert counting.left.is_set()


async def test_a_replica_that_is_gone_is_503_and_its_successor_is_found() -> None:
    async with served(Counting()) as (model, handle, _):
        parts = model.answer("completions", {"to": 9})
        assert [await anext(parts) for _ in range(6)][-1] == "data: 4\n\n"
        handle.replicas[0].die()
        handle.replicas = [Replica(Counting())]
        with pytest.raises(RequestError) as failed:
            await anext(parts)
        assert failed.value.status_code == 503
        assert await ask(model, 2) == counted(2)


@pytest.mark.parametrize("deaths", [1, 2])
async def test_a_request_that_no_replica_has_begun_is_sent_once_more(deaths: int) -> None:
    async with served(Counting(broken=True)) as (model, handle, _):
        asked = asyncio.create_task(ask(model, 2))
        for left in reversed(range(deaths)):
            dying = handle.replicas[0]
            await asyncio.wait_for(dying.model.begun.wait(), 60)
            handle.replicas = [Replica(Counting(broken=left > 0))]
            dying.die()
        if deaths == 1:
            assert await asked == [ResponseStart("abc"), *counted(2)]
        else:
            with pytest.raises(RequestError) as failed:
                await asked
            assert failed.value.status_code == 503


@pytest.mark.parametrize("way", ["is dead", "cannot connect", "does not come"])
async def test_a_replica_that_does_not_connect_in_time_is_503(way: str) -> None:
    async with served() as (model, handle, _):
        handle.failure = {"is dead": RayActorError(), "cannot connect": DeploymentUnavailableError("x")}.get(way)
        asked = [anext(model.answer("completions", {"to": 1})) for _ in range(3)]
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
        assert [error.status_code for error in found] == [503] * 3
        # A dead one is looked for again, on an idle machine ten times, and one that only does not come is not.
        assert handle.calls in (range(2, 11) if way == "is dead" else [1])
        handle.failure, handle.replicas = None, [Replica(Counting())]
        assert await ask(model, 1) == counted(1)


async def test_the_least_busy_replica_is_asked_and_more_are_found() -> None:
    models = [Counting(), Counting(), Counting()]
    async with served(models[0]) as (model, handle, _):
        assert await ask(model, 1) == counted(1)
        handle.replicas += map(Replica, models[1:])
        await until(lambda: all(replica._connections for replica in handle.replicas))
        waiting = [model.answer("completions", {"to": 9}) for _ in range(6)]
        for parts in waiting:
            assert [await anext(parts) for _ in range(6)][-1] == "data: 4\n\n"
        assert [each.open for each in models] == await model.requests() == [2, 2, 2]
        for parts in waiting:
            await parts.aclose()


async def test_a_draining_replica_gets_no_further_requests() -> None:
    models = [Counting(), Counting()]
    async with served(*models) as (model, handle, _):
        await until(lambda: all(replica._connections for replica in handle.replicas))
        parts = [model.answer("completions", {"to": 9}) for _ in range(2)]
        for each in parts:
            await anext(each)
        left = handle.replicas.pop(0)
        draining = asyncio.create_task(left.drain())
        await asyncio.sleep(0.05)
        for _ in range(3):
            assert await ask(model, 2) == counted(2)
        assert [each.asked for each in models] == [1, 4]
        assert not draining.done()
        await parts[0].aclose()
        await asyncio.wait_for(draining, 60)
        await parts[1].aclose()


async def test_all_replicas_are_promoted_and_one_that_missed_it_follows() -> None:
    models = [Counting(), Counting(), Counting()]
    async with served(*models[:2]) as (model, handle, _):
        done = await model.promote(Path("folder"), "def")
        assert (done.seconds, done.error) == (0.25, None)
        assert [each.weights for each in models] == ["def", "def", "abc"]
        handle.replicas.append(Replica(models[2]))
        await until(lambda: models[2].weights == "def")


async def test_a_gateway_that_replaces_another_one_knows_what_was_promoted() -> None:
    models = [Counting(), Counting()]
    async with served(*models) as (_, _, pool):
        pool.expect(MODEL, Path("folder"), "def")
        await until(lambda: [each.weights for each in models] == ["def", "def"])


async def test_a_promotion_that_one_replica_cannot_follow_is_an_error() -> None:
    async with served(Counting(), Counting(broken=True)) as (model, _, _):
        assert (await model.promote(Path("folder"), "def")).error == "the files cannot be read"


async def test_a_replica_whose_code_fails_says_why_and_is_not_called_out_of_reach() -> None:
    async with served() as (model, handle, _):
        handle.replicas.append(Faulty(Counting()))
        assert (await model.promote(Path("folder"), "def")).error == "ValueError: no room"


@pytest.mark.parametrize("start_seconds", [None, 0.5])
async def test_a_dead_replica_is_not_one_that_sleeps(start_seconds: float | None) -> None:
    async with served(Counting(), start_seconds=start_seconds) as (model, handle, _):
        handle.replicas.append(Dead(Counting()))
        assert await model.requests() == [0]
        del handle.replicas[0]
        with pytest.raises(RequestError) as failed:
            await model.requests()
        assert failed.value.status_code == 503
        assert "cannot be reached" in str(failed.value.body)


async def test_a_model_that_sleeps_has_the_time_that_loading_takes() -> None:
    # Longer than a replica that is there already has to connect.
    async with served(start_seconds=5.0) as (model, handle, _):
        asked = asyncio.create_task(ask(model, 2))
        await asyncio.sleep(2 * pool.CONNECT_SECONDS)
        assert not asked.done()
        handle.replicas.append(Replica(Counting()))
        assert (await asked)[1:] == counted(2)[1:]


async def test_a_model_may_sleep_until_it_is_asked() -> None:
    async with served(start_seconds=0.5) as (model, handle, _):
        assert await model.requests() == []
        assert await model.promote(Path("folder"), "def") == PromotionResult(0.0)
        asked = asyncio.create_task(ask(model, 2))
        await until(lambda: handle.calls)
        handle.replicas.append(Replica(Counting()))
        assert (await asked)[1:] == counted(2)[1:]
    async with served() as (model, _, _):
        with pytest.raises(RequestError) as failed:
            await model.requests()
        assert "still loading" in str(failed.value.body)
