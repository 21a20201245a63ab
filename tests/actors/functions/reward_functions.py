"""Functions that are called in processes of their own, which import this file and nothing heavy with it."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

from actors.types import RewardInput

COUNT = 3


def doubled(question: RewardInput, answer: str) -> float:
    """Returns twice the number that the answer is; prints, which must not disturb the protocol."""
    print("called with", answer)
    return 2 * float(answer)


def length(question: RewardInput, answer: str) -> float:
    """Returns the number of characters of the answer and of messages before it."""
    return len(answer) + len(question.messages)


def calls_a_tool(question: RewardInput, answer: str) -> bool:
    """Tells whether the answer has the special token that begins calls of tools."""
    return "[TOOL_CALLS]" in question.raw_answer


def signed(question: RewardInput, answer: str) -> float:
    """Returns the answer, a whole number, plus the id of the parent process over 1e9; slow, so that a kill interrupts
    it."""
    time.sleep(0.5)
    return int(answer) + os.getppid() / 1e9


def slow(question: RewardInput, answer: str) -> bool:
    """Takes a while."""
    time.sleep(0.05)
    return True


async def waits(question: RewardInput, answer: str) -> float:
    """Takes a while, during which other calls are made."""
    await asyncio.sleep(0.25)
    return 0.5


class Grader:
    """A reward whose `__call__` is a coroutine function."""

    async def __call__(self, _question: RewardInput, answer: str) -> float:
        await asyncio.sleep(0)
        return float(answer)


grader = Grader()


class WordlessError(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


def unsound(question: RewardInput, answer: str) -> object:
    """Fails in the way that the answer names, else is well."""
    if answer == "raise":
        raise KeyError("no\nsuch key")
    if answer == "hang":
        time.sleep(60)
    if answer == "exit":
        os.kill(os.getpid(), signal.SIGKILL)
    if answer == "read":
        input()
    if answer == "fork":
        os.fork()
    if answer == "wordless":
        raise WordlessError
    return {"nan": float("nan"), "inf": -float("inf"), "none": None, "text": "1.0"}.get(answer, 1)


async def unsound_waits(question: RewardInput, answer: str) -> object:
    """Fails as `unsound`, and blocks its process, where the answer says so."""
    if answer == "wait":
        await asyncio.sleep(60)
    await asyncio.sleep(0.01)
    return unsound(question, answer)


def once(question: RewardInput, answer: str) -> float:
    """Fails the first time that it is called with an answer."""
    mark = Path(question.metadata["folder"]) / answer
    if mark.exists():
        return 1.0
    mark.touch()
    raise ConnectionError("not yet")


def leaves_behind(question: RewardInput, answer: str) -> float:
    """Hangs behind another process, whose id it writes down."""
    with subprocess.Popen(["sleep", "60"]) as process:
        Path(question.metadata["folder"], "pid").write_text(str(process.pid))
    return 0.0


def alarmed(question: RewardInput, answer: str) -> float:
    """Uses a feature that only a main thread has."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.alarm(0)
    return asyncio.run(waits(question, answer))
