"""The HTTP listener on a real socket: clients that do not read, that are slow, and a server that ends."""

import asyncio
import json
import socket
import time
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serve.gateway import Settings, gateway_app
from serve.http.listener import Listener
from tests.helpers import free_port
from tests.serve.local import Parrot, prompt

pytestmark = pytest.mark.anyio


class Endless:
    """Writes without end, except at /short, and counts the clients that it writes to."""

    def __init__(self) -> None:
        self.writing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if scope["path"] == "/short":
            await asyncio.sleep(0.2)
            await send({"type": "http.response.body", "body": b"whole"})
            return
        self.writing += 1
        writer = asyncio.create_task(self._write(send))
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            writer.cancel()
            self.writing -= 1

    async def _write(self, send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})


async def test_a_client_that_never_reads_loses_its_place_and_one_that_reads_slowly_keeps_it() -> None:
    app, port = Endless(), free_port()
    listener = Listener(app, "127.0.0.1", port, stop_seconds=1, unread_seconds=1.0)
    with socket.create_connection(("127.0.0.1", port)) as deaf, socket.create_connection(("127.0.0.1", port)) as slow:
        for client in (deaf, slow):
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        slow.setblocking(False)
        end, began = time.monotonic() + 15, time.monotonic()
        while app.writing < 2:
            await asyncio.sleep(0.01)
        while app.writing == 2:
            assert time.monotonic() < end, "the connection of a client that does not read was not cut"
            await asyncio.get_running_loop().sock_recv(slow, 1 << 20)
            await asyncio.sleep(0.05)
        assert time.monotonic() - began >= 1.0
        assert app.writing == 1
    await listener.close()


async def test_the_end_waits_for_answers_that_are_being_written() -> None:
    port = free_port()
    listener = Listener(Endless(), "127.0.0.1", port, stop_seconds=5)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        asked = asyncio.create_task(client.get("/short"))
        await asyncio.sleep(0.1)
        assert listener.is_open()
        await listener.close()
        assert not listener.is_open()
        assert (await asked).text == "whole"
        with pytest.raises(httpx.ConnectError):
            await client.get("/short")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_before_the_answer_ends_the_work(tmp_path: Path, stream: bool) -> None:
    model, port = Parrot(), free_port()
    listener = Listener(gateway_app({"parrot": model}, Settings(tmp_path)), "127.0.0.1", port, stop_seconds=1)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=0.3) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/completions", json=prompt("wait", stream=stream))
        async with asyncio.timeout(5):
            while not model.ended:
                await asyncio.sleep(0.01)
        assert (await client.post("/v1/completions", json=prompt("a b"))).status_code == 200
    await listener.close()
    rows = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert sorted(row["status"] for row in rows) == [200, 499]
