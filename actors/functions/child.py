"""The process of one function: reads calls from its standard input and answers on its standard output.

Both are lines of JSON. A call is `{"id", "arguments", "seconds"}`; its answer has the id and `value`, or `failure` in
words. The first line says how the function is to be called: `{"ready": true, "asynchronous": …}`.

A plain function is called in the main thread, one call after the other, as `signal` and `asyncio.run` need it. A
coroutine function gets all calls at once.
"""

import asyncio
import ctypes
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from actors.functions.conversations import ENVIRONMENT, environment_handler, is_environment
from actors.functions.values import ValueRefusedError, as_number
from actors.types import RewardInput
from cluster.errors import UserError
from cluster.recipe.functions import load_function

# The longest line of a call, in bytes: a conversation of millions of tokens.
LINE_BYTES = 1 << 28
# Of Linux' prctl: the signal that a process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1
REASON_CHARACTERS = 300

# Answers a call of these arguments by a JSON value, or raises; or a coroutine function that does.
Handler = Callable[[dict[str, Any]], Any]


def main() -> None:
    """Serves the function whose name and purpose are the arguments."""
    name, what = sys.argv[1:]
    if sys.platform == "linux":
        # A function that hangs would outlive an actor that is killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    calls, answers = _own_pipes()
    try:
        function = load_function(name, what)
    except UserError as error:
        _write(answers, json.dumps({"ready": False, "failure": str(error)}))
        return
    handle = environment_handler(function) if what == ENVIRONMENT else reward_handler(function)
    asynchronous = inspect.iscoroutinefunction(handle)
    _write(answers, json.dumps({"ready": True, "asynchronous": asynchronous, "objects": is_environment(function)}))
    if asynchronous:
        asyncio.run(_serve_many(handle, calls, answers))
    else:
        for line in calls:
            call = json.loads(line)
            _write(answers, _called(handle, call))


def _own_pipes() -> tuple[BinaryIO, TextIO]:
    """Takes standard input and output away from the function, and from what it starts: what it prints is no answer, and
    what it reads is no call."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # A copy of the process has no part in them.
    os.register_at_fork(after_in_child=calls.close)
    os.register_at_fork(after_in_child=answers.close)
    return calls, answers


def reward_handler(function: Callable[..., Any]) -> Handler:
    """Returns what answers calls of a reward function."""

    def judged(given: dict[str, Any]) -> tuple[RewardInput, str]:
        return RewardInput(given["messages"], given["metadata"], given["raw_answer"]), given["answer"]

    def plain(given: dict[str, Any]) -> float:
        return as_number(function(*judged(given)))

    async def coroutine(given: dict[str, Any]) -> float:
        return as_number(await function(*judged(given)))

    return coroutine if inspect.iscoroutinefunction(function) else plain


def _called(handle: Handler, call: dict[str, Any]) -> str:
    try:
        return _line(call, value=handle(call["arguments"]))
    # The function is the user's own, and may fail in any way.
    except Exception as error:  # noqa: BLE001
        return _line(call, failure=_reason(error))


async def _serve_many(handle: Handler, calls: BinaryIO, answers: TextIO) -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), calls)
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(_answer(handle, json.loads(line), answers))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _answer(handle: Handler, call: dict[str, Any], answers: TextIO) -> None:
    try:
        async with asyncio.timeout(call["seconds"]) as limit:
            line = _line(call, value=await handle(call["arguments"]))
    # The function is the user's own, and may fail in any way.
    except Exception as error:  # noqa: BLE001
        line = _line(call, late=True) if limit.expired() else _line(call, failure=_reason(error))
    _write(answers, line)


def _line(call: dict[str, Any], **found: Any) -> str:
    """Returns the answer to a call. Raises a TypeError or a ValueError if what was found is not JSON."""
    return json.dumps({"id": call["id"], **found})


def _reason(error: Exception) -> str:
    try:
        text = str(error)
    # So may an exception of its own.
    except Exception:  # noqa: BLE001
        text = "(an exception without words)"
    if not isinstance(error, ValueRefusedError):
        text = f"raised {type(error).__name__}: {text}"
    # Half of a character of two cannot be written into any log.
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:REASON_CHARACTERS]


def _write(answers: TextIO, line: str) -> None:
    if answers.closed:
        # The function forked, and this copy of it returned too.
        os._exit(0)
    answers.write(f"{line}\n")
    answers.flush()


if __name__ == "__main__":
    main()
