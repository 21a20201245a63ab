import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster import __version__
from cluster.recipe.loading import load_recipe
from tests.helpers import answers, free_port, triptych, wait_until

START_SECONDS = 240


@dataclass(frozen=True)
class Head:
    """The addresses of a cluster.

    Attributes:
        jobs: its job server.
        address: the address for drivers that join it.
    """

    jobs: str
    address: str


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """Starts a Ray cluster with a token, isolated from other clusters on this machine, and yields its addresses."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    # Sockets below it may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray, port = Path(sys.executable).with_name("ray"), free_port()
    ports = {"port": free_port(), "ray-client-server-port": free_port(), "dashboard-agent-listen-port": free_port()}
    words = [f"--{name}={value}" for name, value in {**ports, "dashboard-port": port}.items()]
    words += ["--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={folder}", "--block"]
    # On a cluster's nodes too, the first Python on the path is the one with the requirements.
    path = f"{ray.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [ray, "start", "--head", "--dashboard-host=127.0.0.1", *words]
    with (
        Path(folder, "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as started,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{address}/api/version"), START_SECONDS, "the job server")
            yield Head(address, f"127.0.0.1:{ports['port']}")
        finally:
            # All at once: asked to end in order, it takes half a minute.
            for process in [*psutil.Process(started.pid).children(recursive=True), started]:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def short_connections(port: int, seconds: float = 1.0) -> Iterator[int]:
    """Runs a proxy that ends every connection after a while, and yields its port."""

    async def serve(proxy: asyncio.Future[int], ended: asyncio.Event) -> None:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answer, request = await asyncio.open_connection("127.0.0.1", port)
            ways = [asyncio.ensure_future(forward(reader, request)), asyncio.ensure_future(forward(answer, writer))]
            await asyncio.wait(ways, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            request.close()
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        proxy.get_loop().call_soon(proxy.set_result, server.sockets[0].getsockname()[1])
        async with server:
            await ended.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found, ended = loop.create_future(), asyncio.Event()
    asyncio.run_coroutine_threadsafe(serve(found, ended), loop)

    async def known() -> int:
        return await found

    try:
        yield asyncio.run_coroutine_threadsafe(known(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(ended.set)
        time.sleep(0.1)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_runs_the_command_and_returns_its_log_and_exit_code(
    head: Head, recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = triptych("submit", "version", "--address", head.jobs, cwd=recipe_path.parent)
    assert version.stderr == ""
    assert version.returncode == 0
    assert f"triptych {__version__}" in version.stdout.splitlines()
    # The recipe's only text has two words, and comes from a module beside the recipe: the job reads it on the cluster
    # and says so, over connections that end after a second.
    (recipe_path.parent / "own_source.py").write_text(
        "import os\ndef documents(seed): yield os.environ['TEXT_OF_TEST'] + ' text'"
    )
    monkeypatch.setenv("TEXT_OF_TEST", "some")
    source = "corpus.sources=[{kind: function, function: 'own_source:documents'}]"
    with short_connections(int(head.jobs.rpartition(":")[2])) as port:
        address = f"http://127.0.0.1:{port}"
        corpus = triptych(
            *("submit", "corpus", recipe_path, source, "--address", address, "--env", "TEXT_OF_TEST"),
            cwd=recipe_path.parent,
        )
    assert corpus.returncode == 2, corpus.stderr
    assert corpus.stdout.count("1 documents of corpus.sources read, 0 left") == 1
    job = corpus.stdout.split()[2]
    again = triptych("attach", job, "--address", head.jobs, cwd=recipe_path.parent)
    assert (again.returncode, again.stdout) == (2, corpus.stdout.partition("\n")[2])
    unknown = triptych("attach", "triptych-0", "--address", head.jobs, cwd=recipe_path.parent)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "has no job triptych-0" in unknown.stderr
    # A command that joins the cluster itself does the same.
    joined = triptych("corpus", recipe_path, f"cluster.address={head.address}", cwd=recipe_path.parent)
    assert joined.returncode == 2
    assert "1 documents of corpus.sources read, 0 left" in joined.stderr


def test_a_submitted_recipe_means_the_same_elsewhere(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cluster.runtime.jobs import resolved

    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    overrides = [
        "run=''",
        "model.start_from=start",
        "corpus.sources.0.path=text.txt",
        "corpus.previous_corpora=[before/corpus]",
        "corpus.decontaminate={files: [asked.json, 's3://bucket/asked.json']}",
        "sft.sources=[{kind: files, path: chats/*.jsonl}]",
        "rlhf.steps=7",
        "evaluate.text=[{kind: files, path: read.txt}]",
        "serve.adapters={terse: {path: adapter}}",
    ]
    recipe = resolved(load_recipe(recipe_path, overrides))
    assert recipe.run == str(tmp_path / "runs" / "tiny")
    assert recipe.corpus.sources[0].path == str(tmp_path / "text.txt")
    assert recipe.model.start_from == str(tmp_path / "start")
    assert recipe.corpus.previous_corpora == [str(tmp_path / "before" / "corpus")]
    assert recipe.corpus.decontaminate
    assert recipe.corpus.decontaminate.files == [str(tmp_path / "asked.json"), "s3://bucket/asked.json"]
    assert recipe.sft.sources[0].path == str(tmp_path / "chats" / "*.jsonl")
    assert recipe.evaluate.text[0].path == str(tmp_path / "read.txt")
    assert recipe.serve.adapters["terse"].path == str(tmp_path / "adapter")
    assert recipe.rlhf.steps == 7
    assert recipe.cluster.address == "auto"
    assert resolved(load_recipe(recipe_path, ["model.start_from=owner/name"])).model.start_from == "owner/name"
