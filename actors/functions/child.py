"""The process of one function: reads calls from its standard input and answers on its standard output.

Both are lines of JSON. A call is `{"id", "arguments", "seconds"}`; its answer has the id and `value`, or `failure` in
words. The first line says how the function is to be called: `{"ready": true, "asynchronous": …}`.

A plain function is called in the main thread, one call after the other, as `signal` and `asyncio.run` need it. A
coroutine function gets all calls at once.
"""

import asyncio
import inspect
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from actors.functions.conversations import ENVIRONMENT, environment_handler, is_environment
from actors.functions.values import ValueRefusedError, as_number
from actors.types import RewardInput
from cluster.errors import UserError
from cluster.recipe.functions import failure_reason, is_coroutine_function, load_function, one_line

# The longest line of a call, in bytes: a conversation of millions of tokens.
LINE_BYTES = 1 << 28

# Answers a call of these arguments by a JSON value, or raises; or a coroutine function that does.
Handler = Callable[[dict[str, Any]], Any]


def main() -> None:
    """Serves the function whose name and purpose are the arguments."""
    name, what = sys.argv[1:]
    _end_with_caller()
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


def _end_with_caller() -> None:
    """Makes this process, and all processes that the function starts, end when the process that calls it ends.

    A function that hangs would outlive an actor that is killed, and so would its own processes, such as a sandbox. A
    second process of the group waits for the end of the pipe that calls come from, and then kills the group. It has no
    parent in the group, so that the function's own waits for processes do not find it.
    """
    parent = os.getpid()
    if first := os.fork():
        os.waitpid(first, 0)
        return
    if os.fork():
        os._exit(0)
    # The calling process reads answers until no process has the pipe of answers open any more, so this one closes it.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    caller = select.poll()
    # An empty mask reports only the end of the pipe: the function's process reads the calls.
    caller.register(0, 0)
    caller.poll()
    os.killpg(parent, signal.SIGKILL)


def _own_pipes() -> tuple[BinaryIO, TextIO]:
    """Takes standard input and output away from the function and from processes that it starts, so that nothing that
    they print is read as an answer, and they read no calls."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # A fork of this process must not use them.
    os.register_at_fork(after_in_child=calls.close)
    os.register_at_fork(after_in_child=answers.close)
    return calls, answers


def reward_handler(function: Callable[..., Any]) -> Handler:
    """Returns a handler of calls of a reward function."""

    def judged(given: dict[str, Any]) -> tuple[RewardInput, str]:
        return RewardInput(given["messages"], given["metadata"], given["raw_answer"]), given["answer"]

    def plain(given: dict[str, Any]) -> float:
        return as_number(function(*judged(given)))

    async def coroutine(given: dict[str, Any]) -> float:
        return as_number(await function(*judged(given)))

    return coroutine if is_coroutine_function(function) else plain


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
    """Returns the answer to a call. Raises a TypeError or a ValueError if the values are not JSON."""
    return json.dumps({"id": call["id"], **found})


def _reason(error: Exception) -> str:
    return one_line(str(error)) if isinstance(error, ValueRefusedError) else failure_reason(error)


def _write(answers: TextIO, line: str) -> None:
    if answers.closed:
        # The function forked, and this copy of it returned too.
        os._exit(0)
    answers.write(f"{line}\n")
    answers.flush()


if __name__ == "__main__":
    main()
