"""Clients that mean harm, side by side against one server, each again and again.

Most were once enough to stop every model of a server, or to fill its memory: see `tests/serve/test_attacks.py`. Only
the standard library is imported, so that a process of them starts at once.

python -m infra.bench.servers.attackers PORT MODEL SECONDS
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# Between two attempts of one attack. Without a pause the attackers would take the cores themselves.
PAUSE_SECONDS = 0.1
ANSWER_SECONDS = 10.0
# Connections that an attacker of the last two kinds holds open.
IDLE, DEAF = 100, 3
TURN = [{"role": "user", "content": "x"}]


@dataclass(frozen=True)
class Target:
    """The server on a port of this machine, and the model to name."""

    port: int
    model: str


async def connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a connection; reads no more of it by itself than 64 KB."""
    return await asyncio.open_connection("127.0.0.1", target.port)


def head(path: str, length: int) -> bytes:
    """Returns the head of a request with a JSON body of so many bytes."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def request(path: str, body: dict[str, Any]) -> bytes:
    """Returns a whole request."""
    sent = json.dumps(body).encode()
    return head(path, len(sent)) + sent


async def ask(target: Target, path: str, **body: Any) -> str:
    """Sends a request and returns the status of the response."""
    reader, writer = await connect(target)
    try:
        writer.write(request(path, {"model": target.model, **body}))
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await reader.readline()).decode()[9:12] or "closed"
    finally:
        writer.close()


async def padding(target: Target) -> str:
    """Asks the template to pad a prompt to a billion tokens."""
    variables = {"tokenize": True, "padding": "max_length", "max_length": 1_000_000_000}
    return await ask(target, "/v1/chat/completions", messages=TURN, chat_template_kwargs=variables)


async def long_text(target: Target) -> str:
    """Sends a megabyte of text to tokenize."""
    return await ask(target, "/tokenize", prompt="lima " * 190_000)


async def many_parts(target: Target) -> str:
    """Sends tens of thousands of messages to render."""
    return await ask(target, "/tokenize", messages=TURN * 20_000)


async def hang_up(target: Target) -> str:
    """Asks for several long answers, and closes the connection."""
    reader, writer = await connect(target)
    body = {"model": target.model, "prompt": "The", "n": 4, "max_tokens": 1000, "ignore_eos": True, "stream": True}
    writer.write(request("/v1/completions", body))
    async with asyncio.timeout(ANSWER_SECONDS):
        await reader.readline()
    writer.close()
    return "left"


async def endless_header(target: Target) -> str:
    """Sends a header without end."""
    return await flood(target, b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"x" * 65_536)


async def endless_body(target: Target) -> str:
    """Sends 400 MB to the label page, without a token."""
    return await flood(target, head("/label/judgement", 400 << 20), b" " * 65_536)


async def flood(target: Target, first: bytes, rest: bytes) -> str:
    """Sends the same again and again until the server hangs up."""
    reader, writer = await connect(target)
    try:
        writer.write(first)
        for _ in range(6400):
            writer.write(rest)
            await writer.drain()
            if reader.at_eof():
                return "closed"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
    return "sent all"


async def idle(target: Target) -> str:
    """Holds connections open, some of them in the middle of a header."""
    held = [await connect(target) for _ in range(IDLE)]
    for _, writer in held[::2]:
        writer.write(b"POST /v1/comp")
    await asyncio.sleep(1)
    for _, writer in held:
        writer.close()
    return "held"


async def deaf(target: Target) -> str:
    """Asks for long answers and reads nothing of them."""
    held = [await connect(target) for _ in range(DEAF)]
    body = {"model": target.model, "prompt": "The", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    for _, writer in held:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request("/v1/completions", body | {"logprobs": 5}))
    await asyncio.sleep(1)
    for _, writer in held:
        writer.transport.abort()
    return "held"


ATTACKS: dict[str, Callable[[Target], Awaitable[str]]] = {
    one.__name__: one for one in (padding, long_text, many_parts, hang_up, endless_header, endless_body, idle, deaf)
}


async def attack(target: Target, seconds: float) -> dict[str, Counter[str]]:
    """Runs all attacks side by side for a while; returns how often each ended in which way."""
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in ATTACKS}

    async def repeat(name: str) -> None:
        while True:
            try:
                outcomes[name][await ATTACKS[name](target)] += 1
            except (OSError, TimeoutError) as error:
                outcomes[name][type(error).__name__] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(repeat, ATTACKS))
    return outcomes


if __name__ == "__main__":
    port, model, duration = sys.argv[1:]
    found = asyncio.run(attack(Target(int(port), model), float(duration)))
    print(json.dumps(found))
