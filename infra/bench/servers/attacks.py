"""Measures a client's latency and the growth of memory while other clients attack the server.

python -m infra.bench.servers.attacks [--seconds 60] [--size 2.5M | --model DIRECTORY]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

from infra.bench.servers.start import MODEL, add_model, free_port, model_of, own

# The most seconds for which the client is measured by itself.
ALONE_SECONDS = 10.0
ASK = {"prompt": "The", "max_tokens": 200, "ignore_eos": True, "stream": True}


@dataclass(frozen=True)
class Attacked:
    """A client's seconds between two tokens, at the 99th percentile, by itself and under attack.

    Attributes:
        alone: the seconds without an attack.
        attacked: the seconds under attack.
        grown: bytes that the server's processes grew by.
        outcomes: how often each attack ended in which way.
    """

    alone: float
    attacked: float
    grown: int
    outcomes: dict[str, dict[str, int]]


def measure(port: int, model: str, processes: Sequence[psutil.Process], alone: float, seconds: float) -> Attacked:
    """Measures a client by itself and then under attack, which other processes carry out.

    Args:
        port: the server's.
        model: the model to ask.
        processes: the server's, whose memory is measured.
        alone: seconds by itself.
        seconds: seconds under attack.

    Raises:
        httpx.HTTPError: the client was not answered.
    """
    by_itself = asyncio.run(p99_between_tokens(port, model, alone))
    before = _memory(processes)
    words = [sys.executable, "-m", "infra.bench.servers.attackers", str(port), model, str(seconds)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root) as attackers:
        attacked = asyncio.run(p99_between_tokens(port, model, seconds))
        outcomes = json.loads(attackers.communicate(timeout=30)[0])
    return Attacked(by_itself, attacked, _memory(processes) - before, outcomes)


async def p99_between_tokens(port: int, model: str, seconds: float) -> float:
    """Returns a client's seconds between two events of a stream, at the 99th percentile. It asks again and again."""
    gaps: list[float] = []
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        while time.monotonic() < end:
            async with client.stream("POST", "/v1/completions", json={"model": model, **ASK}) as response:
                response.raise_for_status()
                last = None
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        now = time.monotonic()
                        gaps += [now - last] if last else []
                        last = now
    return float(np.quantile(gaps, 0.99))


def _memory(processes: Sequence[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in processes)


def main() -> None:
    """Prints the figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(words)
    words.add_argument("--seconds", type=float, default=60.0)
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run, _ = model_of(given, Path(name))
        port = free_port()
        with own(run, port, Path(name) / "own.log") as server:
            # Ray's own processes are the server's children too.
            family = [server, *server.children(recursive=True)]
            alone = min(ALONE_SECONDS, given.seconds)
            # The first requests make buffers and compile.
            asyncio.run(p99_between_tokens(port, MODEL, 2))
            found = measure(port, MODEL, family, alone, given.seconds)
    print(f"p99 between tokens: {found.alone * 1e3:.1f} ms alone, {found.attacked * 1e3:.1f} ms under attack", end=", ")
    print(f"{found.attacked / found.alone:.1f} times; memory {found.grown / 1e6:+.0f} MB in {given.seconds:.0f} s")
    for attack, outcomes in found.outcomes.items():
        print(f"  {attack}: {', '.join(f'{count} × {outcome}' for outcome, count in outcomes.items())}")


if __name__ == "__main__":
    main()
