"""One real server for all tests of the floor: three tiny models behind Ray Serve."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from ray import serve
from transformers import AutoTokenizer

from actors.model.chat_template import CHAT_TEMPLATE, END_OF_TURN
from cluster.plan import Share
from serve.app import serve_run
from serve.gateway import Settings
from tests.helpers import free_port
from tests.serve.browsing import CHROMIUM
from tests.templates import CHATML, LLAMA_3
from tests.tiny import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root / "base", seed=1, end_id=0, context=CONTEXT)
    write_tiny_model(root / "policy", seed=2, end_id=4, context=CONTEXT)
    write_styles(root / "base")
    return {name: root / name for name in ("base", "policy")}


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


@pytest.fixture(scope="package")
def server(
    model_folders: dict[str, Path], ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    port, url = free_port(), f"sqlite:///{tmp_path_factory.mktemp('feedback') / 'feedback.db'}"
    settings = Settings(feedback_url=url)
    try:
        serve_run(model_folders, "127.0.0.1", port, Share(cpus=0.5, gpus=0, threads=1), CONTEXT, 180, settings)
        yield Server(f"http://127.0.0.1:{port}", port, model_folders, url)
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
