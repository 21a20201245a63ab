"""Extracts the main text of web pages in a separate process, which is restarted if a hostile page stalls or ends it.

The parser is native code that Python cannot interrupt: a page of 8,000 nested elements, 40 KB, takes 1.2 s, and time
grows with their square. The system ends the process when a page's processor time is used up.

Measured alternatives: pebble gives 32 to 38 % fewer pages/s; multiprocessing's spawn gives 3 % fewer, but imports the
main module of a Ray worker with every start of the parser: seconds and 356 MB, compared with 0.06 s and 17 MB here.
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
from pipelines.corpus.read.extract_worker import REPLY, REQUEST

# Bytes of pages sent ahead, so that neither process sleeps and wakes for every page: with none sent ahead a page of
# 22 KB took a third longer. They fit into the socket's buffer, since a writer that waits for room could deadlock.
_AHEAD_BYTES = 1 << 17
# Keeps freed memory in the process: returning it to the system and allocating it anew took half of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_TOP_PAD_": str(1 << 26)}
# On a busy machine wall-clock time may be this multiple of processor time.
_PATIENCE = 20
_START_SECONDS = 60


class ExtractionError(Exception):
    """Raised for a page without a text; the message is the predicate of a sentence whose subject is the page."""


@dataclass(eq=False, slots=True)
class PageRequest:
    """A page sent to the parser, with its text or error once that has arrived."""

    extractor: "Extractor"
    page: bytes
    charset: bytes
    main_text: str | None = None
    error: str | None = None

    def text(self) -> str:
        """Waits for the main text.

        Raises:
            ExtractionError: the page cannot be parsed, takes too long or ends the parser.
        """
        while self.main_text is None and self.error is None:
            self.extractor.receive()
        if self.error is not None:
            raise ExtractionError(self.error)
        return self.main_text or ""


class Extractor:
    """Runs `main_text` in another process, which starts with the first page and ends with the `with` block.

    Args:
        seconds: processor time allowed per page.
        library: resiliparse or trafilatura.
    """

    def __init__(self, seconds: float, library: str = "resiliparse") -> None:
        self._seconds, self._library = seconds, library
        self._waiting: deque[PageRequest] = deque()
        # Bytes of the waiting pages; number of them sent; number, from the first, to be sent one at a time.
        self._ahead = self._sent = self._suspects = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._replies: BufferedReader | None = None

    def __enter__(self) -> "Extractor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, page: bytes, charset: str | None = None) -> str:
        """Extracts the main text of a page.

        Args:
            charset: encoding named by the server.

        Raises:
            ExtractionError: the page cannot be parsed, takes too long or ends the parser.
        """
        return self.request(page, charset).text()

    def request(self, page: bytes, charset: str | None = None) -> PageRequest:
        """Sends a page to the parser without waiting for its text."""
        while self._waiting and self._ahead + len(page) > _AHEAD_BYTES:
            self.receive()
        request = PageRequest(self, page, (charset or "").encode())
        self._waiting.append(request)
        self._ahead += len(page)
        self._send()
        return request

    def receive(self) -> None:
        """Waits for the reply to the oldest request.

        If one of several pages ended the parser, all of them are sent again one at a time, to find which.
        """
        assert self._replies is not None, "a page waits for its text after the end of its extractor"
        try:
            parsed, size = REPLY.unpack(_read_exactly(self._replies, REPLY.size))
            content = _read_exactly(self._replies, size)
        except (TimeoutError, EOFError, ConnectionError) as error:
            sent, code = self._sent, self._stop()
            if sent > 1:
                self._suspects = sent
            elif isinstance(error, TimeoutError):
                self._next().error = f"was not parsed in {self._deadline:.0f} s"
            elif code == -signal.SIGPROF:
                self._next().error = f"takes more than {self._seconds:g} s of processor time to parse"
            else:
                self._next().error = f"ended the parser (exit code {code})"
        else:
            self._sent -= 1
            if parsed:
                self._next().main_text = content.decode("utf-8", "surrogatepass")
            else:
                self._next().error = f"cannot be parsed ({content.decode()})"
        self._send()

    def _next(self) -> PageRequest:
        """Removes the oldest request from the waiting ones."""
        request = self._waiting.popleft()
        self._ahead -= len(request.page)
        self._suspects = max(0, self._suspects - 1)
        # The caller may keep the request, and a page may have 100 MB.
        request.page = b""
        return request

    @property
    def _deadline(self) -> float:
        return _START_SECONDS + _PATIENCE * self._seconds

    def _send(self) -> None:
        """Sends the waiting pages that were not sent yet."""
        while self._sent < (min(1, len(self._waiting)) if self._suspects else len(self._waiting)):
            if self._socket is None:
                self._socket, self._replies = self._start()
            request = self._waiting[self._sent]
            self._sent += 1
            try:
                sizes = REQUEST.pack(len(request.charset), len(request.page))
                self._socket.sendall(sizes + request.charset + request.page)
            except (TimeoutError, ConnectionError):
                # An earlier page ended the parser, or this one did not reach it: receive() finds out.
                self._socket.shutdown(socket.SHUT_WR)

    def _start(self) -> tuple[socket.socket, BufferedReader]:
        here, there = socket.socketpair()
        for end in (here, there):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                # The default of some systems is 8 KB.
                end.setsockopt(socket.SOL_SOCKET, buffer, 2 * _AHEAD_BYTES)
        here.settimeout(self._deadline)
        # Without -P modules in this folder would shadow the standard library's.
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
        if self._socket is None or self._replies is None or self._process is None:
            return None
        self._replies.close()
        self._socket.close()
        try:
            # An idle parser ends by itself when the connection is closed.
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(_START_SECONDS)
        self._socket = self._replies = self._process = None
        self._sent = 0
        return code


def _read_exactly(file: BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
