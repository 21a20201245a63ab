"""The server beside bare vLLM, or beside Ray's: same model, settings and load in one run. Both are up, and take turns.

Closed loop: so many clients ask for streams of 64 tokens, each again as soon as it has its answer. Open loop: they come
at random, at shares of the rate that the peer keeps up with in the closed loop of most clients. Printed are tokens a
second, the median time to the first token, the 99th percentile of the time between two, and the ratios. The model has
random weights and by default the demo's shape, or is one in a Hugging Face directory.

python -m infra.bench.serving [--size 2.5M | --model DIRECTORY] [--seconds 5] [--rounds 3] [--concurrency 1 8 32]
    [--peer vllm | ray]
python -m infra.bench.serving --soak 1800     # the server alone: its memory, open files and errors over time
python -m infra.bench.serving --kill          # the server alone: what clients see when a process of it is killed
"""

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from infra.bench.servers.load import TOKENS, Cell, closed_loop, open_loop
from infra.bench.servers.start import MODEL, RECIPE, START_SECONDS, bare, free_port, own, ray_llm, write_run

CAPACITY_CLIENTS, SOAK_SHARE, SAMPLE_SECONDS = 32, 0.8, 10.0
KILL_CLIENTS, KILL_AFTER_SECONDS = 8, 2.0
# What Ray calls their processes.
VICTIMS = {"Ray Serve's controller": "ServeController", "the model's process": "ServeReplica"}
SHARES = (0.4, 0.6, 0.8)
PEERS = {"vllm": bare, "ray": ray_llm}


def compare(run: RunFolder, recipe: Recipe, arguments: argparse.Namespace, folder: Path) -> None:
    """Prints a line for every load: both servers' medians over the rounds, and their ratios."""
    ports = free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    peer = PEERS[arguments.peer]
    with own(run, ports[0], folder / "own.log"), peer(run, recipe, ports[1], folder / "peer.log"):
        for url in urls:
            asyncio.run(closed_loop(url, max(arguments.concurrency), 2.0))
        columns = f"tokens/s own, {arguments.peer}, ratio | first token p50 ms | between tokens p99 ms | errors"
        print(f"load        | {columns}", flush=True)

        def row(name: str, load: Callable[[str], Coroutine[Any, Any, Cell]]) -> float:
            rounds = [[asyncio.run(load(url)) for url in urls] for _ in range(arguments.rounds)]
            mine, theirs = (
                [statistics.median(values) for values in zip(*(cells[side].figures for cells in rounds), strict=True)]
                for side in (0, 1)
            )
            parts = [f"{a:,.1f} {b:,.1f} {a / b:.2f}" for a, b in zip(mine, theirs, strict=True)]
            errors = sum(cell.errors for cells in rounds for cell in cells)
            print(f"{name:11} | {' | '.join(parts)} | {errors}", flush=True)
            return theirs[0]

        for clients in arguments.concurrency:
            most = row(f"{clients} clients", lambda url, n=clients: closed_loop(url, n, arguments.seconds))
        for share in SHARES:
            rate = share * most / TOKENS
            row(f"{rate:.1f} a second", lambda url, each=rate: open_loop(url, each, arguments.seconds))


def soak(run: RunFolder, seconds: float, folder: Path) -> None:
    """Prints memory, open files and errors of the server under 80 % of the load that it can take, and how they changed
    after warm-up."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with own(run, port, folder / "own.log") as server:
        asyncio.run(closed_loop(url, CAPACITY_CLIENTS, SAMPLE_SECONDS))
        most = asyncio.run(closed_loop(url, CAPACITY_CLIENTS, SAMPLE_SECONDS)).figures[0]
        rate = SOAK_SHARE * most / TOKENS
        print(f"{most:,.0f} tokens/s with {CAPACITY_CLIENTS} clients; now {rate:.1f} requests a second", flush=True)
        sizes, end, errors = [], time.monotonic() + seconds, 0
        while time.monotonic() < end:
            cell = asyncio.run(open_loop(url, rate, SAMPLE_SECONDS))
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
    """Kills Ray Serve's controller under load, and then the process that holds the model: who is told so, and how long
    the next answer takes."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with own(run, port, folder / "own.log") as server, ThreadPoolExecutor(1) as pool:
        for name, title in VICTIMS.items():
            loading = pool.submit(lambda: asyncio.run(closed_loop(url, KILL_CLIENTS, 2 * KILL_AFTER_SECONDS)))
            time.sleep(KILL_AFTER_SECONDS)
            lines = {process: " ".join(process.cmdline()) for process in server.children(recursive=True)}
            (process,) = (each for each, line in lines.items() if title in line and "gateway" not in line)
            process.kill()
            killed = time.monotonic()
            reply = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "The"}, timeout=START_SECONDS)
            seconds, errors = time.monotonic() - killed, loading.result().errors
            print(f"{name} killed under {KILL_CLIENTS} streams: asked then, it answered {reply.status_code}", end=" ")
            print(f"after {seconds:.1f} s; {errors} streams ended with an error event", flush=True)


def main() -> None:
    """Runs the comparison, or the soak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="2.5M")
    parser.add_argument("--model", type=Path, metavar="DIRECTORY")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peer", choices=list(PEERS), default="vllm")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    # Both servers are ended with the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    recipe = load_recipe(RECIPE, [f"model.size={arguments.size}"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_run(folder / "run", recipe, model=arguments.model)
        if arguments.soak:
            soak(run, arguments.soak, folder)
        elif arguments.kill:
            kill(run, folder)
        else:
            compare(run, recipe, arguments, folder)


if __name__ == "__main__":
    main()
