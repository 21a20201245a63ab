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
# The pause of a client after a refused request.
ERROR_SECONDS = 0.1


@dataclass
class Measurements:
    """What was measured of one server in one round: seconds, tokens, errors, and the times to the first token and
    between two tokens, in seconds."""

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


async def closed_loop(url: str, clients: int, seconds: float) -> Measurements:
    """Loads a server with that many clients, each of which asks again as soon as it has its answer.

    Raises:
        SystemExit: the server gave no answer.
    """
    measured, start = Measurements(), time.perf_counter()

    async def client(draw: random.Random) -> None:
        while time.perf_counter() < start + seconds:
            await _ask(session, url, measured, draw)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(random.Random(number)) for number in range(clients)))
    return _checked(measured, start, url)


async def open_loop(url: str, rate: float, seconds: float) -> Measurements:
    """Loads a server with clients that come at random, so many a second whatever the server does: a Poisson process,
    the same each time.

    Raises:
        SystemExit: the server gave no answer.
    """
    measured, start, draw = Measurements(), time.perf_counter(), random.Random(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        due = start
        while (due := due + draw.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(_ask(session, url, measured, draw))
    return _checked(measured, start, url)


def _checked(measured: Measurements, start: float, url: str) -> Measurements:
    measured.seconds = time.perf_counter() - start
    if not measured.gaps:
        raise SystemExit(f"{url} gave no answer, and {measured.errors} errors")
    return measured


async def _ask(session: aiohttp.ClientSession, url: str, measured: Measurements, draw: random.Random) -> None:
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
            measured.errors += 1
            await asyncio.sleep(ERROR_SECONDS)
            return
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            if line.startswith(b'data: {"error"'):
                measured.errors += 1
                break
            now = time.perf_counter()
            if b'"choices":[]' in line:
                measured.tokens += json.loads(line[6:])["usage"]["completion_tokens"]
            elif last is None:
                measured.first.append(now - asked)
                last = now
            else:
                measured.gaps.append(now - last)
                last = now
