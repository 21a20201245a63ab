"""One real server for all tests of the floor: two tiny models of a run behind Ray Serve."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from ray import serve

from cluster.plan import Share
from cluster.run import Manifest, RunFolder, file_fingerprint
from cluster.versions import Versions
from serve.app import aliases, serve_run
from serve.gateway import Settings
from tests.helpers import free_port
from tests.serve.browsing import CHROMIUM
from tests.tiny import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Long enough that an abandoned request would run for seconds.
CONTEXT = 2048


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    folders: dict[str, Path]
    feedback_url: str
    run: RunFolder


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def finish_model(run: RunFolder, name: str, seed: int, end_id: int) -> None:
    """What the stage that makes a model leaves."""
    out = run.begin(name, str(seed))
    write_tiny_model(out, seed, end_id, context=CONTEXT)
    weights = file_fingerprint(out / "model.safetensors")
    run.commit(name, Manifest(name, str(seed), {}, {}, "test", 0.0, {}, weights))


@pytest.fixture(scope="package")
def server(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run, port = RunFolder(tmp_path_factory.mktemp("served")), free_port()
    finish_model(run, "base", seed=1, end_id=0)
    finish_model(run, "policy", seed=2, end_id=4)
    versions = {name: Versions(run, name) for name in ("base", "policy")}
    weights = {name: one.start().weights for name, one in versions.items()}
    folders = {name: one.folder for name, one in versions.items()}
    settings = Settings(run.root, run.feedback_url, weights=weights, aliases=aliases(folders))
    try:
        serve_run(folders, "127.0.0.1", port, Share(cpus=0.5, gpus=0, threads=1), CONTEXT, 180, settings)
        models = {name: run.path(name) for name in folders}
        yield Server(f"http://127.0.0.1:{port}", port, models, run.feedback_url, run)
    finally:
        serve.shutdown()


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        # Without a sandbox of its own it also starts as root and in containers.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
