"""Clients that load a server, and their measurements."""

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field

import aiohttp

from infra.bench.servers.start import MODEL

PROMPT, TOKENS = 32, 64
# Before a client asks again that was refused.
ERROR_SECONDS = 0.1


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


async def closed_loop(url: str, clients: int, seconds: float) -> Cell:
    """That many clients, each of which asks again as soon as it has its answer."""
    cell, start = Cell(), time.perf_counter()

    async def client(draw: random.Random) -> None:
        while time.perf_counter() < start + seconds:
            await _ask(session, url, cell, draw)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(random.Random(number)) for number in range(clients)))
    return _checked(cell, start, url)


async def open_loop(url: str, rate: float, seconds: float) -> Cell:
    """Clients that come at random, so many a second whatever the server does: a Poisson process, the same each time."""
    cell, start, draw = Cell(), time.perf_counter(), random.Random(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        due = start
        while (due := due + draw.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(_ask(session, url, cell, draw))
    return _checked(cell, start, url)


def _checked(cell: Cell, start: float, url: str) -> Cell:
    cell.seconds = time.perf_counter() - start
    if not cell.gaps:
        raise SystemExit(f"{url} gave no answer, and {cell.errors} errors")
    return cell


async def _ask(session: aiohttp.ClientSession, url: str, cell: Cell, draw: random.Random) -> None:
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
            return
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
