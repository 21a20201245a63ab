"""TLS between gateway and replicas: with Ray's files where Ray uses TLS, and for members of the cluster alone."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import UserError
from serve.transport.gateway_end import Address, GatewayConnection, ReplicaListener, new_replica_id
from serve.transport.messages import CompleteResponse, Endpoint, Part
from serve.transport.replica_end import connect
from tests.serve.support.certificates import write_certificate

pytestmark = pytest.mark.anyio


def use(monkeypatch: pytest.MonkeyPatch, certificate: Path, key: Path) -> None:
    """Sets Ray's variables; the certificate is its own authority."""
    files = {"SERVER_CERT": certificate, "SERVER_KEY": key, "CA_CERT": certificate}
    for name, path in files.items():
        monkeypatch.setenv(f"RAY_TLS_{name}", str(path))
    monkeypatch.setenv("RAY_USE_TLS", "1")


async def echo(endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
    yield CompleteResponse(200, {"endpoint": endpoint, **body})


MODELS: Any = {"a": SimpleNamespace(answer=echo)}


async def test_traffic_is_encrypted_and_clients_without_a_certificate_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    member, outsider = (write_certificate(tmp_path / name) for name in ("member", "outsider"))
    use(monkeypatch, *member)
    listener, connections = ReplicaListener(), asyncio.Queue[GatewayConnection]()
    await listener.open("127.0.0.1")
    address = listener.address(connections.put_nowait)
    await connect(address, new_replica_id(), MODELS)
    gateway = await asyncio.wait_for(connections.get(), 60)
    assert gateway.transport.get_extra_info("cipher")
    with gateway.request("a", "score", {"text": "x" * 300_000}) as parts:
        said = await asyncio.wait_for(parts.get(), 60)
    assert isinstance(said, CompleteResponse)
    assert said.body["text"] == "x" * 300_000
    await plain(address)
    use(monkeypatch, *outsider)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await connect(address, new_replica_id(), MODELS)
    assert connections.empty()
    listener.close()


async def plain(address: Address) -> None:
    """Connects without TLS, and is refused whatever it sends."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(address.secret + new_replica_id())
    with suppress(ConnectionError):
        # An alert of TLS, if anything.
        assert len(await asyncio.wait_for(reader.read(), 60)) < 10
    writer.close()


async def test_files_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.delenv("RAY_TLS_SERVER_CERT", raising=False)
    with pytest.raises(UserError, match="RAY_TLS_SERVER_CERT is not"):
        await ReplicaListener().open("127.0.0.1")
    use(monkeypatch, tmp_path / "none", tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot be used: .*No such file"):
        await ReplicaListener().open("127.0.0.1")
