"""Servers to measure: Triptych's on a run made for it, and on the same model bare vLLM's and Ray's."""

import argparse
import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from transformers import PreTrainedTokenizerFast

from actors.model.causal_lm import build, save
from cluster.recipe.loading import dump_recipe, load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import Manifest, RunFolder
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.plan import make_plan, resources_here
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer
from pipelines.demo.questions import training_questions

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
MODEL = "sft"
START_SECONDS = 240.0
CACHE_BYTES = 256 << 20


def write_run(root: Path, recipe: Recipe, seed: int = 1, model: Path | None = None) -> RunFolder:
    """Makes a run folder with one finished model, in place of an earlier one: that of a Hugging Face directory, or one
    of random weights."""
    run = RunFolder(root)
    out = run.begin(MODEL, str(seed))
    if model:
        for file in model.iterdir():
            if file.is_file():
                shutil.copy(file, out)
    else:
        _write_model(root / "tokenizer", out, recipe, seed)
    weights = weights_fingerprint(out)
    run.commit(MODEL, Manifest(MODEL, str(seed), {}, {}, "bench", 0.0, {}, weights))
    run.recipe_path.write_text(dump_recipe(recipe), encoding="utf-8")
    return run


def add_model(words: argparse.ArgumentParser) -> None:
    """Adds the options that choose the model."""
    words.add_argument("--size", default="2.5M", help="of a model of random weights")
    words.add_argument("--model", type=Path, metavar="DIRECTORY", help="a Hugging Face directory")


def model_of(given: argparse.Namespace, folder: Path) -> tuple[RunFolder, Recipe]:
    """Writes a run with the model that was chosen, below the folder; returns it and its recipe."""
    recipe = load_recipe(RECIPE, [f"model.size={given.size}"])
    return write_run(folder / "run", recipe, model=given.model), recipe


def _write_model(tokens: Path, out: Path, recipe: Recipe, seed: int) -> None:
    texts = [question.text for question in training_questions(seed=1)]
    save_tokenizer(train_tokenizer(texts, recipe.model.vocabulary), tokens, recipe.model.context)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens)
    made = build(recipe.model, seed, end_of_turn=tokenizer.eos_token_id, padding=tokenizer.eos_token_id)
    save(made, tokenizer, out)


@contextlib.contextmanager
def started(command: list[str], url: str, environment: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    """Runs a server as a process; the context begins when it answers."""
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            end = time.monotonic() + START_SECONDS
            while not answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{' '.join(command[:3])} did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str) -> bool:
    """Tells whether a GET of the address gives status 200 within 5 seconds."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def own(run: RunFolder, port: int, log: Path) -> contextlib.AbstractContextManager[psutil.Process]:
    """Starts Triptych's server."""
    command = [sys.executable, "-m", "pipelines", "serve", str(run.root), "--port", str(port)]
    return started(command, f"http://127.0.0.1:{port}/ready", {}, log)


def bare(run: RunFolder, recipe: Recipe, port: int, log: Path) -> contextlib.AbstractContextManager[psutil.Process]:
    """Starts vLLM's own server, with the settings of a replica (`serve.replica.vllm_engine`)."""
    options = {
        "--model": str(run.path(MODEL)),
        "--served-model-name": MODEL,
        "--max-model-len": str(recipe.model.context),
        "--dtype": "float32",
        "--kv-cache-memory-bytes": str(CACHE_BYTES),
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    flags = ["--enforce-eager", "--disable-log-stats", "--disable-uvicorn-access-log"]
    # `vllm serve` asks for the version of a package `vllm`, which the CPU wheel is not called; this is the same server.
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = [*module, *(word for option in options.items() for word in option), *flags]
    return started(command, f"http://127.0.0.1:{port}/health", _environment(recipe), log)


def ray_llm(run: RunFolder, recipe: Recipe, port: int, log: Path) -> contextlib.AbstractContextManager[psutil.Process]:
    """Starts Ray's own server, with the same settings. It answers before its engine does: the first request waits."""
    options = {
        "--name": MODEL,
        "--port": str(port),
        "--context": str(recipe.model.context),
        "--cache-bytes": str(CACHE_BYTES),
    }
    module = [sys.executable, "-m", "infra.bench.servers.ray_llm", str(run.path(MODEL))]
    command = [*module, *(word for option in options.items() for word in option)]
    return started(command, f"http://127.0.0.1:{port}/v1/models", _environment(recipe), log)


def _environment(recipe: Recipe) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(make_plan(recipe, resources_here(recipe.cluster)).replica.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def free_port() -> int:
    """Finds a port of the loopback that nothing listens on, below those that Ray's processes get from the system."""
    while True:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return free.getsockname()[1]
