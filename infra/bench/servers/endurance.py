"""The server alone: its memory, files and errors over time, and what clients see when a process of it is killed."""

import argparse
import asyncio
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from cluster.run.folder import RunFolder
from infra.bench.servers.load import TOKENS, closed_loop, open_loop
from infra.bench.servers.start import MODEL, START_SECONDS, add_model, free_port, model_of, own

CAPACITY_CLIENTS, SOAK_SHARE, SAMPLE_SECONDS = 32, 0.8, 10.0
KILL_CLIENTS, KILL_AFTER_SECONDS = 8, 2.0
# Ray's titles of the processes.
VICTIMS = {"Ray Serve's controller": "ServeController", "the model's process": "ServeReplica"}


def add_soak_options(words: argparse.ArgumentParser) -> None:
    """Adds the options of the soak."""
    add_model(words)
    words.add_argument("--seconds", type=float, default=1800.0)


def measure_soak(given: argparse.Namespace) -> None:
    """Runs the soak."""
    with tempfile.TemporaryDirectory() as name:
        run, _ = model_of(given, Path(name))
        soak(run, given.seconds, Path(name))


def measure_kill(given: argparse.Namespace) -> None:
    """Kills both processes in turn."""
    with tempfile.TemporaryDirectory() as name:
        run, _ = model_of(given, Path(name))
        kill(run, Path(name))


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
