"""The server beside bare vLLM, or beside Ray's: same model, settings and load in one run. Both are up, and take turns.

Closed loop: so many clients ask for streams of 64 tokens, each again as soon as it has its answer. Open loop: they come
at random, at shares of the rate that the peer keeps up with in the closed loop of most clients. Printed are tokens a
second, the median time to the first token, the 99th percentile of the time between two, and the ratios.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from infra.bench.servers.load import TOKENS, Measurements, closed_loop, open_loop
from infra.bench.servers.start import add_model, bare, free_port, model_of, own, ray_llm

SHARES = (0.4, 0.6, 0.8)
PEERS = {"vllm": bare, "ray": ray_llm}


def add_options(words: argparse.ArgumentParser) -> None:
    """Adds the options of the comparison."""
    add_model(words)
    words.add_argument("--seconds", type=float, default=5.0, help="of each load")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    words.add_argument("--peer", choices=list(PEERS), default="vllm")


def measure(given: argparse.Namespace) -> None:
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as name:
        run, recipe = model_of(given, Path(name))
        compare(run, recipe, given, Path(name))


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

        def row(name: str, load: Callable[[str], Coroutine[Any, Any, Measurements]]) -> float:
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
