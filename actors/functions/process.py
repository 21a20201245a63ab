"""The parent's side of a function's process: starts it, sends calls, hands out answers, ends it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from cluster.errors import EngineError, UserError


class FunctionProcess:
    """A process that calls one function. Any thread may use it.

    Args:
        name: module:function.
        what: the function's purpose, for messages.

    Attributes:
        ready: once the function has been imported, whether it is `asynchronous` and makes `objects`; or a UserError
            that says why it cannot be, or an EngineError.
        in_flight: the calls that have not been answered.
        exclusive: whether the call in flight is to have the process alone.
        ended: whether the process has ended, or never came up.
    """

    def __init__(self, name: str, what: str) -> None:
        self.ready: Future[dict[str, bool]] = Future()
        self.in_flight: dict[int, Future[dict[str, Any]]] = {}
        self.exclusive = False
        self._command = [sys.executable, "-m", "actors.functions.child", name, what]
        self._process: Future[subprocess.Popen[bytes]] = Future()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self.ended = False
        for target in (self._run, self._write):
            threading.Thread(target=target, name=f"function {name}", daemon=True).start()

    @property
    def takes_calls(self) -> bool:
        """Whether the function has been imported and the process lives."""
        return self.ready.done() and not self.ended

    def call(self, arguments: Mapping[str, Any], seconds: float) -> Future[dict[str, Any]]:
        """Sends a call and returns the future of its answer: `value`, `failure` in words, or `late`.

        The future raises an EngineError if the process ends before it has answered.

        Args:
            arguments: the JSON values that the child makes the function's arguments of.
            seconds: after which an asynchronous call is canceled.
        """
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self.ended:
                answer.set_exception(EngineError("ended before the call"))
                return answer
            number, self._count = self._count, self._count + 1
            self.in_flight[number] = answer
        row = {"id": number, "arguments": arguments, "seconds": seconds}
        self._lines.put(json.dumps(row).encode() + b"\n")
        return answer

    def kill(self) -> None:
        """Ends the process and those that it has started, whatever they are doing."""
        if not self.ended:
            with suppress(OSError):
                os.killpg(self._process.result().pid, signal.SIGKILL)

    def _run(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        except OSError as error:
            self._process.set_exception(error)
            self._end(f"could not be started: {error}")
            return
        self._process.set_result(process)
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            if "ready" not in row:
                with self._lock:
                    answer = self.in_flight.pop(row.pop("id"))
                answer.set_result(row)
            elif row["ready"]:
                self.ready.set_result(row)
            else:
                self.ready.set_exception(UserError(row["failure"]))
        process.stdout.close()
        code = process.wait()
        with suppress(OSError):
            # Processes that it started and left behind.
            os.killpg(process.pid, signal.SIGKILL)
        self._end(f"ended its process (exit code {code})" if code >= 0 else f"ended its process (signal {-code})")

    def _end(self, how: str) -> None:
        self._lines.put(None)
        with self._lock:
            self.ended = True
            open_calls = list(self.in_flight.values())
            self.in_flight.clear()
        if not self.ready.done():
            self.ready.set_exception(EngineError(how))
        for answer in open_calls:
            answer.set_exception(EngineError(how))

    def _write(self) -> None:
        # A process that hangs does not read its calls: the thread that makes them must not wait for it.
        with suppress(OSError):
            stdin = self._process.result().stdin
            assert stdin is not None
            with suppress(BrokenPipeError), stdin:
                while (line := self._lines.get()) is not None:
                    stdin.write(line)
                    stdin.flush()
