"""The server beside bare vLLM: same model, settings and load in one run. Both are up all the time and take turns.

Closed loop: so many clients ask for streams of 64 tokens, each again as soon as it has its answer. Printed are tokens a
second, the median time to the first token, the 99th percentile of the time between two, and the ratios. The model has
random weights and by default the demo's shape.

python -m infra.bench.serving [--size 2.5M] [--seconds 5] [--rounds 3] [--concurrency 1 8 32]
python -m infra.bench.serving --soak 1800     # the server alone: its memory, open files and errors over time
python -m infra.bench.serving --kill          # the server alone: what clients see when the model's process is killed
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx
import psutil
from transformers import PreTrainedTokenizerFast

from actors.model.language import build, save
from cluster.plan import make_plan, resources_here
from cluster.recipe import Recipe, dump_recipe, load_recipe
from cluster.run import Manifest, RunFolder, file_fingerprint
from pipelines.corpus.tokenizer import save_tokenizer, train_tokenizer
from pipelines.guide.questions import training_questions

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
MODEL = "sft"
PROMPT, TOKENS = 32, 64
# Before a client asks again that was refused.
ERROR_SECONDS = 0.1
START_SECONDS = 240.0
SOAK_CLIENTS, SAMPLE_SECONDS = 6, 10.0
KILL_CLIENTS, KILL_AFTER_SECONDS = 8, 2.0


@dataclass
class Cell:
    """What one server did in one round."""

    seconds: float = 0.0
    tokens: int = 0
    errors: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def figures(self) -> tuple[float, float, float]:
        """Tokens a second, p50 of the time to the first token in ms, p99 of the time between two in ms."""
        gaps = sorted(self.gaps)
        return self.tokens / self.seconds, 1e3 * statistics.median(self.first), 1e3 * gaps[int(0.99 * len(gaps))]


async def load(url: str, clients: int, seconds: float) -> Cell:
    """Closed loop of that many clients."""
    cell, start = Cell(), time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        end = start + seconds
        await asyncio.gather(*(_client(session, url, cell, end, number) for number in range(clients)))
    cell.seconds = time.perf_counter() - start
    if not cell.gaps:
        raise SystemExit(f"{url} gave no answer, and {cell.errors} errors")
    return cell


async def _client(session: aiohttp.ClientSession, url: str, cell: Cell, end: float, number: int) -> None:
    draw = random.Random(number)
    while time.perf_counter() < end:
        body = {
            "model": MODEL,
            "prompt": [draw.randrange(10, 4000) for _ in range(PROMPT)],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asked = time.perf_counter()
        last = None
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                cell.errors += 1
                await asyncio.sleep(ERROR_SECONDS)
                continue
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                if line.startswith(b'data: {"error"'):
                    cell.errors += 1
                    break
                now = time.perf_counter()
                if b'"choices":[]' in line:
                    cell.tokens += json.loads(line[6:])["usage"]["completion_tokens"]
                elif last is None:
                    cell.first.append(now - asked)
                    last = now
                else:
                    cell.gaps.append(now - last)
                    last = now


def write_run(root: Path, recipe: Recipe, seed: int = 1) -> RunFolder:
    """A run folder with one finished model of random weights, in place of an earlier one."""
    run, tokens = RunFolder(root), root / "tokenizer"
    run.begin(MODEL, str(seed))
    texts = [question.text for question in training_questions(seed=1)]
    save_tokenizer(train_tokenizer(texts, recipe.model.vocabulary), tokens, recipe.model.context)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens)
    model = build(recipe.model, seed, end_of_turn=tokenizer.eos_token_id, padding=tokenizer.eos_token_id)
    save(model, tokenizer, run.partial(MODEL))
    weights = file_fingerprint(run.partial(MODEL) / "model.safetensors")
    run.commit(MODEL, Manifest(MODEL, str(seed), {}, {}, "bench", 0.0, {}, weights))
    run.recipe_path.write_text(dump_recipe(recipe), encoding="utf-8")
    return run


@contextlib.contextmanager
def started(command: list[str], url: str, environment: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    """A server as a process, from when it answers."""
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            end = time.monotonic() + START_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{' '.join(command[:3])} did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def own(run: RunFolder, port: int, log: Path) -> contextlib.AbstractContextManager[psutil.Process]:
    """Triptych's server."""
    command = [sys.executable, "-m", "serve", str(run.root), "--port", str(port)]
    return started(command, f"http://127.0.0.1:{port}/ready", {}, log)


def bare(run: RunFolder, recipe: Recipe, port: int, log: Path) -> contextlib.AbstractContextManager[psutil.Process]:
    """vLLM's own server, with the settings of a replica (`serve.engine`)."""
    threads = str(make_plan(recipe, resources_here(recipe.cluster)).replica.threads)
    options = {
        "--model": str(run.path(MODEL)),
        "--served-model-name": MODEL,
        "--max-model-len": str(recipe.model.context),
        "--dtype": "float32",
        "--kv-cache-memory-bytes": str(256 << 20),
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    flags = ["--enforce-eager", "--disable-log-stats", "--disable-uvicorn-access-log"]
    # `vllm serve` asks for the version of a package `vllm`, which the CPU wheel is not called; this is the same server.
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = [*module, *(word for option in options.items() for word in option), *flags]
    environment = {
        "OMP_NUM_THREADS": threads,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return started(command, f"http://127.0.0.1:{port}/health", environment, log)


def compare(run: RunFolder, recipe: Recipe, arguments: argparse.Namespace, folder: Path) -> None:
    """Prints a line for every number of clients: both servers' medians over the rounds, and their ratios."""
    ports = free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with own(run, ports[0], folder / "own.log"), bare(run, recipe, ports[1], folder / "bare.log"):
        for url in urls:
            asyncio.run(load(url, max(arguments.concurrency), 2.0))
        print("clients | tokens/s own, vLLM, ratio | first token p50 ms | between tokens p99 ms | errors", flush=True)
        for clients in arguments.concurrency:
            rounds = [
                [asyncio.run(load(url, clients, arguments.seconds)) for url in urls] for _ in range(arguments.rounds)
            ]
            mine, peer = (
                [statistics.median(values) for values in zip(*(cells[side].figures for cells in rounds), strict=True)]
                for side in (0, 1)
            )
            parts = [f"{a:,.1f} {b:,.1f} {a / b:.2f}" for a, b in zip(mine, peer, strict=True)]
            errors = sum(cell.errors for cells in rounds for cell in cells)
            print(f"{clients:7} | {' | '.join(parts)} | {errors}", flush=True)


def soak(run: RunFolder, seconds: float, folder: Path) -> None:
    """Prints memory, open files and errors of the server under a steady load, and how they changed after warm-up."""
    port = free_port()
    with own(run, port, folder / "own.log") as server:
        sizes, end, errors = [], time.monotonic() + seconds, 0
        while time.monotonic() < end:
            cell = asyncio.run(load(f"http://127.0.0.1:{port}", SOAK_CLIENTS, SAMPLE_SECONDS))
            errors += cell.errors
            # Ray's own processes are the server's children too.
            family = [server, *server.children(recursive=True)]
            memory = sum(process.memory_info().rss for process in family) / 1e6
            files = sum(process.num_fds() for process in family)
            sizes.append((memory, files))
            print(f"{memory:,.0f} MB, {files} files, {cell.figures[0]:,.0f} tokens/s, {errors} errors", flush=True)
        (memory, files), (memory_after, files_after) = sizes[len(sizes) // 10], sizes[-1]
        print(
            f"after warm-up: memory {memory_after / memory - 1:+.1%}, files {files_after - files:+d}, {errors} errors"
        )


def kill(run: RunFolder, folder: Path) -> None:
    """Kills the process that holds the model under load: who is told so, and how long the next answer takes."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with own(run, port, folder / "own.log") as server, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: asyncio.run(load(url, KILL_CLIENTS, 2 * KILL_AFTER_SECONDS)))
        time.sleep(KILL_AFTER_SECONDS)
        names = {process: " ".join(process.cmdline()) for process in server.children(recursive=True)}
        (replica,) = (each for each, name in names.items() if "ServeReplica" in name and "gateway" not in name)
        replica.kill()
        killed = time.monotonic()
        reply = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "The"}, timeout=START_SECONDS)
        print(f"killed under {KILL_CLIENTS} streams: asked then, it answered {reply.status_code} after", end=" ")
        print(f"{time.monotonic() - killed:.1f} s; {loading.result().errors} streams ended with an error event")


def free_port() -> int:
    """A port of the loopback that nothing listens on, below those that Ray's processes get from the system."""
    while True:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return free.getsockname()[1]


def main() -> None:
    """Runs the comparison, or the soak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="2.5M")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    # Both servers are ended with the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    recipe = load_recipe(RECIPE, [f"model.size={arguments.size}"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_run(folder / "run", recipe)
        if arguments.soak:
            soak(run, arguments.soak, folder)
        elif arguments.kill:
            kill(run, folder)
        else:
            compare(run, recipe, arguments, folder)


if __name__ == "__main__":
    main()
