"""Has the main text taken from web pages in a process of its own, which a hostile page cannot hold up.

The parser is native code, which Python cannot interrupt: 8,000 nested elements, 40 KB, keep it busy for 1.2 s, twice
as many for four times as long. The system ends the process when its time is over, and the next page gets a new one.
"""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from io import BufferedReader
from types import TracebackType

from pipelines.corpus.read import extract_worker
from pipelines.corpus.read.extract_worker import ANSWERED, ASKED

# So many bytes of pages wait for the parser, so that neither process sleeps and wakes for every page: with none waiting
# a page of 22 KB took a third more. They fit into a socket: a writer who had to wait for room could wait for ever.
_AHEAD_BYTES = 1 << 17
# Memory that a page took serves the next: given back to the system and taken anew, it made half of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_TOP_PAD_": str(1 << 26)}
# Processor time stands still while the machine is busy with other work: by the clock it may take so much longer.
_PATIENCE = 20
_START_SECONDS = 60


class ExtractionError(Exception):
    """A page that gives no text; the message ends a sentence that starts with the page."""


@dataclass(eq=False, slots=True)
class PageRequest:
    """A page on its way through the parser."""

    extractor: "Extractor"
    page: bytes
    charset: bytes
    answer: str | None = None
    complaint: str | None = None

    def text(self) -> str:
        """The main text, once it is there.

        Raises:
            ExtractionError: the page cannot be parsed, takes too long or ends the parser.
        """
        while self.answer is None and self.complaint is None:
            self.extractor.receive()
        if self.complaint is not None:
            raise ExtractionError(self.complaint)
        return self.answer or ""


class Extractor:
    """Calls `main_text` in another process, started for the first page and ended with the block.

    Args:
        seconds: of processor time a page.
        library: as in `main_text`.
    """

    def __init__(self, seconds: float, library: str = "resiliparse") -> None:
        self._seconds, self._library = seconds, library
        self._waiting: deque[PageRequest] = deque()
        # Bytes of the pages that wait; how many of them were sent; how many, from the first, are sent one by one.
        self._ahead = self._sent = self._suspects = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answers: BufferedReader | None = None

    def __enter__(self) -> "Extractor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, page: bytes, charset: str | None = None) -> str:
        """As `main_text`.

        Raises:
            ExtractionError: as `PageRequest.text`.
        """
        return self.ask(page, charset).text()

    def ask(self, page: bytes, charset: str | None = None) -> PageRequest:
        """Sends a page ahead; its text may be taken later, while the parser is at it."""
        while self._waiting and self._ahead + len(page) > _AHEAD_BYTES:
            self.receive()
        asked = PageRequest(self, page, (charset or "").encode())
        self._waiting.append(asked)
        self._ahead += len(page)
        self._send()
        return asked

    def receive(self) -> None:
        """Waits for the answer to the page that was asked for first.

        Where one of several ends the parser, all of them are sent again, one by one, to find which.
        """
        assert self._answers is not None, "a page waits for its text after the end of its extractor"
        try:
            answered, size = ANSWERED.unpack(_read_exactly(self._answers, ANSWERED.size))
            answer = _read_exactly(self._answers, size)
        except (TimeoutError, EOFError, ConnectionError) as error:
            sent, code = self._sent, self._stop()
            if sent > 1:
                self._suspects = sent
            elif isinstance(error, TimeoutError):
                self._next().complaint = f"was not parsed in {self._deadline:.0f} s"
            elif code == -signal.SIGPROF:
                self._next().complaint = f"takes more than {self._seconds:g} s of processor time to parse"
            else:
                self._next().complaint = f"ended the parser (exit code {code})"
        else:
            self._sent -= 1
            if answered:
                self._next().answer = answer.decode("utf-8", "surrogatepass")
            else:
                self._next().complaint = f"cannot be parsed ({answer.decode()})"
        self._send()

    def _next(self) -> PageRequest:
        """Takes the page that was asked for first from those that wait."""
        asked = self._waiting.popleft()
        self._ahead -= len(asked.page)
        self._suspects = max(0, self._suspects - 1)
        # Who waits for its turn needs the answer alone, and a page may have 100 MB.
        asked.page = b""
        return asked

    @property
    def _deadline(self) -> float:
        return _START_SECONDS + _PATIENCE * self._seconds

    def _send(self) -> None:
        """Sends what waits and was not sent yet."""
        while self._sent < (min(1, len(self._waiting)) if self._suspects else len(self._waiting)):
            if self._socket is None:
                self._socket, self._answers = self._start()
            asked = self._waiting[self._sent]
            self._sent += 1
            try:
                self._socket.sendall(ASKED.pack(len(asked.charset), len(asked.page)) + asked.charset + asked.page)
            except (TimeoutError, ConnectionError):
                # A page before this one ended the parser, or this one did not reach it: receive() finds which.
                self._socket.shutdown(socket.SHUT_WR)

    def _start(self) -> tuple[socket.socket, BufferedReader]:
        here, there = socket.socketpair()
        for end in (here, there):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                # Some systems give 8 KB unless asked.
                end.setsockopt(socket.SOL_SOCKET, buffer, 2 * _AHEAD_BYTES)
        here.settimeout(self._deadline)
        # Without -P this folder's modules would hide the standard library's.
        command = [
            sys.executable,
            "-P",
            extract_worker.__file__,
            str(there.fileno()),
            str(self._seconds),
            self._library,
        ]
        environment = {**os.environ, **_KEEP_MEMORY}
        with there:
            self._process = subprocess.Popen(
                command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        return here, BufferedReader(here.makefile("rb", 0), _AHEAD_BYTES)

    def _stop(self) -> int | None:
        if self._socket is None or self._answers is None or self._process is None:
            return None
        self._answers.close()
        self._socket.close()
        try:
            # It ends by itself when nobody listens, unless it is at work.
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(_START_SECONDS)
        self._socket = self._answers = self._process = None
        self._sent = 0
        return code


def _read_exactly(file: BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
