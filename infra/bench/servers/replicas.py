"""Measures autoscaling: the times at which replicas start and end under a changing load, and the latency of clients.

The model sleeps after some seconds without a request. One request wakes it up, then clients ask for streams until
there are two replicas and for some seconds more, then nobody does until it sleeps again.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import httpx

from cluster.recipe.loading import load_recipe
from infra.bench.servers.load import closed_loop
from infra.bench.servers.start import MODEL, RECIPE, free_port, own, write_run

MOST_REPLICAS = 2
TARGET_REQUESTS = 3
LOADED_SECONDS = 20.0
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.5


async def until_replicas(url: str, count: int) -> float:
    """Waits until the model has so many replicas; returns the seconds."""
    start = time.monotonic()
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as client:
        while (found := (await client.get(f"{url}/ready")).json()["models"][MODEL]["replicas"]) != count:
            if time.monotonic() - start > WAIT_SECONDS:
                raise SystemExit(f"waited {WAIT_SECONDS:.0f} s for {count} replicas, and there are {found}")
            await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - start


async def phases(url: str, clients: int) -> None:
    """Prints the phases as they end."""
    print(f"asleep {await until_replicas(url, 0):.0f} s after the start", flush=True)
    start = time.monotonic()
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as client:
        reply = await client.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "The", "max_tokens": 8})
    print(f"woken up by a request, which was answered {reply.status_code} after {time.monotonic() - start:.1f} s")
    loaded = asyncio.create_task(closed_loop(url, clients, WAIT_SECONDS + LOADED_SECONDS))
    started = await until_replicas(url, MOST_REPLICAS)
    print(f"{clients} clients: {MOST_REPLICAS} replicas after {started:.0f} s", flush=True)
    loaded.cancel()
    cell = await closed_loop(url, clients, LOADED_SECONDS)
    print(f"{cell.tokens / cell.seconds:,.0f} tokens/s then, {cell.errors} errors", flush=True)
    ended = await until_replicas(url, 0)
    print(f"nobody asks: asleep after {ended:.0f} s")


def add_options(words: argparse.ArgumentParser) -> None:
    """Adds the options of the replicas."""
    words.add_argument("--clients", type=int, default=8)
    words.add_argument("--idle", type=float, default=10.0, metavar="SECONDS")


def measure(arguments: argparse.Namespace) -> None:
    """Runs the phases against a server of its own."""
    settings = {
        "min_replicas": 0,
        "max_replicas": MOST_REPLICAS,
        "target_requests": TARGET_REQUESTS,
        "idle_seconds": arguments.idle,
    }
    recipe = load_recipe(RECIPE, [f"serve.{name}={value}" for name, value in settings.items()])
    with tempfile.TemporaryDirectory() as name:
        port = free_port()
        run = write_run(Path(name) / "run", recipe)
        with own(run, port, Path(name) / "own.log"):
            asyncio.run(phases(f"http://127.0.0.1:{port}", arguments.clients))
