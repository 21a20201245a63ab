"""One real server for all tests of this layer: two tiny models of a run behind Ray Serve."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
import torch
from ray import serve
from transformers import AutoTokenizer

from actors.model import lora
from actors.model.causal_lm import load
from actors.model.tokenizer import CHAT_TEMPLATE, END_OF_TURN
from cluster.keys import new_key
from cluster.recipe.base import Lora
from cluster.recipe.serve import Adapter, Serve
from cluster.run.folder import Manifest, RunFolder, file_fingerprint
from cluster.run.versions import Versions
from cluster.runtime.plan import Allocation
from serve.gateway import GatewaySettings
from serve.replica.adapter_versions import AdapterVersions
from serve.replica.lora import with_adapters
from serve.routes import aliases_of
from serve.server import deploy
from tests.helpers import two_free_ports
from tests.serve.support.browsing import CHROMIUM, PATIENCE_MS
from tests.templates import CHATML, LLAMA_3
from tests.tiny import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OWNER, TOKEN = new_key("(owner)", ("admin",))
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
# Long enough that an abandoned request would run for seconds.
CONTEXT = 2048
# The template and the token that ends a turn.
STYLES = {
    "triptych": (CHAT_TEMPLATE, END_OF_TURN),
    "chatml": (CHATML, "<|im_end|>"),
    "llama-3": (LLAMA_3, "<|eot_id|>"),
}


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    folders: dict[str, Path]
    feedback_url: str
    run: RunFolder

    @property
    def other_url(self) -> str:
        """The address of the second gateway."""
        return f"http://127.0.0.1:{self.port + 1}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def finish_model(run: RunFolder, name: str, seed: int, end_id: int, styles: bool = False) -> None:
    """Writes a finished stage with a tiny model."""
    out = run.begin(name, str(seed))
    write_tiny_model(out, seed, end_id, context=CONTEXT)
    if styles:
        write_styles(out)
    weights = file_fingerprint(out / "model.safetensors")
    run.commit(name, Manifest(name, str(seed), {}, {}, "test", 0.0, {}, weights))


def write_styles(model: Path) -> None:
    """Gives a model every style of chat template, one of which a request names, and the tokens of all."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "additional_special_tokens": tokens})
    first, *others = STYLES.items()
    branches = [f"{{% if style == '{first[0]}' %}}{first[1][0]}"]
    branches += [f"{{% elif style == '{name}' %}}{template}" for name, (template, _) in others]
    tokenizer.chat_template = "".join(branches) + "{% endif %}"
    tokenizer.save_pretrained(model)


def write_adapter(model: Path, folder: Path, seed: int = 1, rank: int = 4) -> None:
    """Writes a LoRA adapter that changes the model's answers."""
    language = load(model)
    lora.add(language, Lora(rank=rank, alpha=8), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in language.named_parameters():
            if name.endswith(lora.UP):
                value.normal_(0, 0.1, generator=generator)
    lora.save_adapter(language, language.state_dict(), folder)


@pytest.fixture(scope="package")
def server(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run, port = RunFolder(tmp_path_factory.mktemp("served")), two_free_ports()
    finish_model(run, "base", seed=1, end_id=0, styles=True)
    finish_model(run, "policy", seed=2, end_id=4)
    versions = {name: Versions(run, name) for name in ("base", "policy")}
    weights: dict[str, str | None] = {name: one.start().weights for name, one in versions.items()}
    terse = tmp_path_factory.mktemp("terse")
    write_adapter(run.path("base"), terse)
    adapters = AdapterVersions(run, "terse", terse)
    weights["terse"] = adapters.start().weights
    folders = {name: one.folder for name, one in versions.items()}
    settings = GatewaySettings(
        run.root,
        run.feedback_url,
        weights=weights,
        aliases=aliases_of(list(folders), {}),
        owner=OWNER,
        adapters={"terse": terse},
    )
    try:
        share = Allocation(cpus=0.5, gpus=0, threads=1)
        section = Serve(gateways=2, adapters={"terse": Adapter(path=str(terse), model="base")})
        section = with_adapters(section, {"terse": adapters.folder})
        deploy(folders, "127.0.0.1", port, share, CONTEXT, 180, settings, section)
        models = {name: run.path(name) for name in folders} | {"terse": terse}
        yield Server(f"http://127.0.0.1:{port}", port, models, run.feedback_url, run)
    finally:
        serve.shutdown()


@contextmanager
def connection(server: Server, sent: bytes) -> Iterator[socket.socket]:
    """Yields a connection over which some bytes have been sent; it is closed with the context."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as opened:
        opened.sendall(sent)
        yield opened


def head(length: int) -> bytes:
    """Returns the head of a request with a JSON body of so many bytes."""
    lines = ("POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    api.expect.set_options(timeout=PATIENCE_MS)
    with api.sync_playwright() as driver:
        # Without a sandbox of its own it also starts as root and in containers.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
