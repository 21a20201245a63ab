"""The HTTP listener on a real socket: clients that do not read, that are slow, and a server that ends."""

import asyncio
import json
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from cluster.errors import UserError
from cluster.recipe.serve import Tls
from cluster.run.folder import RunFolder
from cluster.run.server_client import NotServedError, ask_server, write_server
from serve.gateway import GatewaySettings
from serve.http.listener import Listener, encryption
from tests.helpers import free_port
from tests.serve.support.certificates import write_certificate
from tests.serve.support.local import Parrot, gateway_app, prompt

pytestmark = pytest.mark.anyio


class Endless:
    """Writes without end, except at /short, which takes some time, and counts the clients that it writes to."""

    def __init__(self, short_seconds: float = 0.2) -> None:
        self.writing, self.short_seconds = 0, short_seconds
        self.short_begun = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if scope["path"] == "/short":
            self.short_begun.set()
            await asyncio.sleep(self.short_seconds)
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
    listener = Listener(app, "127.0.0.1", port, stop_seconds=1, unread_seconds=3.0)
    with socket.create_connection(("127.0.0.1", port)) as deaf, socket.create_connection(("127.0.0.1", port)) as slow:
        for client in (deaf, slow):
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        slow.setblocking(False)
        end, began = time.monotonic() + 60, time.monotonic()
        while app.writing < 2:
            await asyncio.sleep(0.01)
        while app.writing == 2:
            assert time.monotonic() < end, "the connection of a client that does not read was not cut"
            await asyncio.get_running_loop().sock_recv(slow, 1 << 20)
            await asyncio.sleep(0.05)
        assert time.monotonic() - began >= 3.0
        assert app.writing == 1
    await listener.close()


async def test_the_end_waits_for_answers_that_are_being_written() -> None:
    app, port = Endless(), free_port()
    listener = Listener(app, "127.0.0.1", port, stop_seconds=60)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        asked = asyncio.create_task(client.get("/short"))
        await app.short_begun.wait()
        assert listener.is_open()
        await listener.close()
        assert not listener.is_open()
        assert (await asked).text == "whole"
        with pytest.raises(httpx.ConnectError):
            await client.get("/short")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_before_the_answer_ends_the_work(tmp_path: Path, stream: bool) -> None:
    model, port = Parrot(), free_port()
    listener = Listener(gateway_app({"parrot": model}, GatewaySettings(tmp_path)), "127.0.0.1", port, stop_seconds=1)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        asked = asyncio.create_task(client.post("/v1/completions", json=prompt("wait", stream=stream)))
        await model.waits.wait()
        asked.cancel()
        async with asyncio.timeout(60):
            while not model.ended:
                await asyncio.sleep(0.01)
        assert (await client.post("/v1/completions", json=prompt("a b"))).status_code == 200
    await listener.close()
    rows = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert sorted(row["status"] for row in rows) == [200, 499]


def sent_until_closed(client: socket.socket, data: bytes, most: int) -> int:
    """Sends data again and again until the server closes the connection; returns how much was sent, in bytes."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            sent += client.send(data)
    return sent


async def test_a_head_without_end_is_refused_before_anything_is_asked() -> None:
    app, port = Endless(), free_port()
    listener = Listener(app, "127.0.0.1", port, stop_seconds=1)
    try:
        for line in (b"GET /", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"GET / HTTP/1.1\r\n"):
            with await connection(port) as client:
                more = b"a: b\r\n" * 1000 if line.endswith(b"\n") else b"x" * 10_000
                client.sendall(line)
                sent = await asyncio.to_thread(sent_until_closed, client, more, 50 << 20)
                assert sent < 10 << 20
        assert app.writing == 0
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as good:
            assert (await good.get("/short", headers={"X": "x" * 60_000})).status_code == 200
            assert (await good.post("/short", content=b"x" * 1_000_000)).status_code == 200
    finally:
        await listener.close()


async def test_a_head_has_a_deadline_and_the_answer_has_none() -> None:
    port = free_port()
    listener = Listener(Endless(short_seconds=2.5), "127.0.0.1", port, stop_seconds=1, head_seconds=2)
    try:
        silent, half, later, good = [await connection(port) for _ in range(4)]
        with silent, half, later, good:
            half.sendall(b"GET /short HT")
            good.sendall(b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            later.sendall(b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET")
            assert [await asyncio.to_thread(received, one) for one in (silent, half)] == [b"", b""]
            assert b"whole" in await asyncio.to_thread(received, good)
            # The next request on the connection began before the answer, and did not go on.
            assert b"whole" in await asyncio.to_thread(received, later)
            assert await asyncio.to_thread(received, later) == b""
    finally:
        await listener.close()


async def test_the_connection_that_waited_longest_makes_room_and_requests_keep_theirs() -> None:
    port = free_port()
    listener = Listener(Endless(), "127.0.0.1", port, stop_seconds=1, max_connections=20)
    try:
        with ExitStack() as held:
            busy = held.enter_context(await connection(port))
            busy.sendall(b"GET /short HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            idle = [held.enter_context(await connection(port)) for _ in range(60)]
            assert b"whole" in await asyncio.to_thread(received, busy)
            async with asyncio.timeout(60):
                while (closed := [await asyncio.to_thread(is_closed, one) for one in idle]).count(False) > 20:
                    pass
            assert closed == sorted(closed, reverse=True)
            assert closed.count(False) in (19, 20)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                assert (await client.get("/short")).text == "whole"
    finally:
        await listener.close()


async def connection(port: int) -> socket.socket:
    client = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))
    client.settimeout(60)
    # For the server to accept it.
    await asyncio.sleep(0.01)
    return client


def received(client: socket.socket) -> bytes:
    """Returns the bytes received until the answer "whole" or the end of the connection."""
    data = b""
    with suppress(ConnectionError):
        while b"whole" not in data and (part := client.recv(1 << 16)):
            data += part
    return data


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def test_a_refused_body_is_not_read_to_its_end() -> None:
    port = free_port()
    listener = Listener(gateway_app({"parrot": Parrot()}, GatewaySettings()), "127.0.0.1", port, stop_seconds=1)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        fields = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d" % (400 << 20)
        writer.write(b"POST /v1/completions HTTP/1.1\r\n" + fields + b"\r\n\r\n")
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 60)
        sent, block = 0, bytes(1 << 20)
        with suppress(ConnectionError, TimeoutError):
            while sent < 400 << 20:
                writer.write(block)
                async with asyncio.timeout(5):
                    await writer.drain()
                sent += len(block)
        assert sent < 50 << 20
        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
    finally:
        await listener.close()


async def test_https_with_the_owners_certificate(tmp_path: Path) -> None:
    (certificate, key), (other, _) = (write_certificate(tmp_path / name) for name in ("own", "other"))
    port, run = free_port(), RunFolder(tmp_path / "run")
    tls = Tls(certificate=str(certificate), key=str(key))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"scheme": scope["scheme"]})(scope, receive, send)

    listener = Listener(app, "127.0.0.1", port, stop_seconds=1, head_seconds=3, tls=tls)
    url = f"https://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(certificate))) as client:
            assert (await client.get(f"https://localhost:{port}/")).json() == {"scheme": "https"}
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://localhost:{port}/")
        # Neither a client that says nothing nor one that speaks no TLS stays.
        for sent in (b"", b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            async with asyncio.timeout(60):
                with suppress(ConnectionError):
                    await reader.read()
            writer.close()
        # The commands of the run trust this certificate alone, whatever name is in it.
        write_server(run, url, "token", certificate=certificate)
        assert await asyncio.to_thread(ask_server, run.root, "replicas") == {"scheme": "https"}
        write_server(run, url, "token", certificate=other)
        with pytest.raises(NotServedError):
            await asyncio.to_thread(ask_server, run.root, "replicas")
    finally:
        await listener.close()


def test_a_certificate_that_cannot_be_used_is_named_before_anything_starts(tmp_path: Path) -> None:
    (certificate, key), (_, other) = (write_certificate(tmp_path / name) for name in ("own", "other"))
    assert encryption(None) is None
    assert encryption(Tls(certificate=str(certificate), key=str(key)))
    (tmp_path / "words").write_text("no certificate")
    for wrong in ((tmp_path / "absent", key), (certificate, other), (tmp_path / "words", key)):
        with pytest.raises(UserError, match=r"serve\.tls: .* cannot be used: \w"):
            encryption(Tls(certificate=str(wrong[0]), key=str(wrong[1])))
