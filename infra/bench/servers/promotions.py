"""Other weights for a server under load: what clients notice of ten promotions in five minutes of streams.

Clients ask for completions and chats of fixed prompts, greedily; meanwhile two versions of the model take turns. An
answer that names one version must be the one that a fresh server with that version gives, else it is of both and does
not say so.
"""

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from cluster.recipe.loading import load_recipe
from cluster.run.server_client import ask_server
from infra.bench.servers.start import MODEL, RECIPE, free_port, own, write_run

PROMPTS = ("The capital of", "Water is", "Once there was", "A good doctor", "Two and two", "Why does the sun")
LENGTHS = (8, 24, 64, 160)
HEADER = "X-Triptych-Weights"
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class StreamRequest:
    """A request of a client for a streamed answer."""

    path: str
    prompt: str
    tokens: int

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the request."""
        asked = (
            {"messages": [{"role": "user", "content": self.prompt}]} if "chat" in self.path else {"prompt": self.prompt}
        )
        settings = {"model": MODEL, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        return asked | settings


QUESTIONS = [
    StreamRequest(path, prompt, tokens)
    for path, prompt, tokens in itertools.product(("completions", "chat/completions"), PROMPTS, LENGTHS)
]


@dataclass
class Traffic:
    """The answers and errors that clients got.

    Attributes:
        answers: request, the version that the header named, whether a comment named others, the text.
        failed: the reason of every request without a whole answer.
        gap: the longest time between two events of a stream, in seconds.
    """

    answers: list[tuple[StreamRequest, str, bool, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    gap: float = 0.0


async def ask(session: aiohttp.ClientSession, url: str, question: StreamRequest, traffic: Traffic) -> None:
    """Adds one answer to the traffic."""
    text, mixed, done, last = "", False, False, None
    async with session.post(f"{url}/v1/{question.path}", json=question.body) as reply:
        if reply.status != 200:
            traffic.failed.append(f"{reply.status} {await reply.text()}")
            return
        async for line in reply.content:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                traffic.gap = max(traffic.gap, now - (last or now))
                last = now
                event = json.loads(line[6:])
                text += "".join(_written(choice) for choice in event.get("choices", []))
            mixed |= line.startswith(f": {HEADER}".encode())
            done |= line.startswith(b"data: [DONE]")
        weights = reply.headers[HEADER]
    if done:
        traffic.answers.append((question, weights, mixed, text))
    else:
        traffic.failed.append(f"a stream ended early after {text!r}")


def _written(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["delta"].get("content") or ""


async def load(url: str, clients: int, end: float) -> Traffic:
    """Asks with that many clients, each at random, until `end` (of the monotonic clock); returns what they got."""
    traffic = Traffic()

    async def client(draw: random.Random) -> None:
        while time.monotonic() < end:
            await ask(session, url, draw.choice(QUESTIONS), traffic)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS)) as session:
        await asyncio.gather(*(client(random.Random(number)) for number in range(clients)))
    return traffic


async def ask_each(url: str) -> dict[StreamRequest, str]:
    """Returns the answers of a server that serves one version, to one request after the other."""
    traffic = Traffic()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS)) as session:
        for question in QUESTIONS:
            await ask(session, url, question, traffic)
    if traffic.failed:
        raise SystemExit(f"{url}: {traffic.failed[0]}")
    return {question: text for question, _, _, text in traffic.answers}


async def promote(run: Path, versions: list[str], times: int, seconds: float) -> list[float]:
    """Promotes the versions in turn, so many times in so many seconds; returns the pauses, in seconds."""
    pauses = []
    for number in range(times):
        await asyncio.sleep(seconds / (times + 1))
        wanted = {"model": MODEL, "version": versions[(number + 1) % len(versions)]}
        pauses.append((await asyncio.to_thread(ask_server, run, "promote", wanted))["seconds"])
    return pauses


async def both(url: str, run: Path, versions: list[str], arguments: argparse.Namespace) -> tuple[Traffic, list[float]]:
    """Asks and promotes at the same time; returns the traffic, and the pauses of the promotions."""
    end = time.monotonic() + arguments.seconds
    return await asyncio.gather(
        load(url, arguments.clients, end), promote(run, versions, arguments.promotions, arguments.seconds)
    )


@contextmanager
def served(folder: Path, seeds: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Serves a run that made these versions of a model one after the other; yields the address and the versions'
    names."""
    recipe = load_recipe(RECIPE, [])
    port, url, names = free_port(), "", []
    run = write_run(folder, recipe, seeds[0])
    with own(run, port, folder / "server.log"):
        url = f"http://127.0.0.1:{port}"
        for seed in seeds[1:]:
            write_run(folder, recipe, seed)
            ask_server(folder, "promote", {"model": MODEL})
        names = ask_server(folder, "versions")[MODEL]["kept"]
        yield url, names


def add_options(words: argparse.ArgumentParser) -> None:
    """Adds the options of the promotions."""
    words.add_argument("--seconds", type=float, default=300.0)
    words.add_argument("--promotions", type=int, default=10)
    words.add_argument("--clients", type=int, default=6)


def measure(arguments: argparse.Namespace) -> None:
    """Prints what clients got, and how long the pauses were."""
    expected = {}
    with tempfile.TemporaryDirectory() as name:
        for seed in (1, 2):
            with served(Path(name) / f"fresh-{seed}", (seed,)) as (url, (version,)):
                expected[version] = asyncio.run(ask_each(url))
        changing = Path(name) / "changing"
        with served(changing, (1, 2)) as (url, versions):
            traffic, pauses = asyncio.run(both(url, changing, versions, arguments))
            live = versions[arguments.promotions % len(versions)]
            after = asyncio.run(ask_each(url))
    whole = [(question, weights, text) for question, weights, mixed, text in traffic.answers if not mixed]
    unsaid = [each for each in whole if expected[each[1]][each[0]] != each[2]]
    changed = sum(after[question] != text for question, text in expected[live].items())
    print(f"{len(pauses)} promotions in {arguments.seconds:g} s, {arguments.clients} clients: ", end="")
    print(f"{len(traffic.answers)} answers, {len(traffic.failed)} failed")
    for reason in traffic.failed[:3]:
        print(f"  {reason}")
    print(f"{len(traffic.answers) - len(whole)} answers of several versions said so, {len(unsaid)} did not")
    for question, weights, text in unsaid[:3]:
        print(f"  {question}: {weights[:8]} gave {text!r}, fresh {expected[weights][question]!r}")
    print(f"pauses: {max(pauses):.3f} s at most; longest gap in a stream {traffic.gap:.2f} s")
    print(f"afterwards {changed} of {len(after)} answers differ from a fresh server's")
