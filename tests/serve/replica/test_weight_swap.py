"""The gate between requests and changes of the weights: which waits, and which requests saw both versions."""

import asyncio

import pytest

from serve.replica.weight_swap import WeightSwapGate

pytestmark = pytest.mark.anyio


async def test_a_change_waits_for_answers_and_answers_wait_for_the_change() -> None:
    gate, order = WeightSwapGate("old"), []

    async def answer(name: str, ready: asyncio.Event, go_on: asyncio.Event) -> str:
        async with gate.request() as request:
            ready.set()
            await go_on.wait()
            order.append(name)
            return ",".join(request.versions)

    ready, go_on = asyncio.Event(), asyncio.Event()
    short = asyncio.create_task(answer("short", ready, go_on))
    await ready.wait()
    closed = gate.closed(drain_seconds=5)
    closing = asyncio.create_task(closed.__aenter__())
    await asyncio.sleep(0)
    late = asyncio.create_task(answer("late", asyncio.Event(), go_on))
    go_on.set()
    await closing
    assert gate.set_version("new") == 0
    order.append("change")
    await closed.__aexit__(None, None, None)
    assert (await short, await late, order) == ("old", "new", ["short", "change", "late"])


async def test_an_answer_that_goes_on_knows_both_versions() -> None:
    gate = WeightSwapGate("old")
    async with gate.request() as long:
        async with gate.closed(drain_seconds=0.01):
            assert gate.set_version("new") == 1
        assert long.mixed == "old, new"
        async with gate.request() as after:
            assert (after.versions, after.mixed) == (["new"], None)


async def test_a_change_that_fails_opens_the_gate_again() -> None:
    gate = WeightSwapGate("old")
    with pytest.raises(ValueError, match="broken"):
        async with gate.closed(drain_seconds=0.01):
            raise ValueError("broken")
    async with asyncio.timeout(1), gate.request() as request:
        assert request.versions == ["old"]
