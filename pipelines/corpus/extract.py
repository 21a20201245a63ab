"""Takes the main text from web pages in a process of its own, which a hostile page cannot hold up.

The parser is native code, which Python cannot interrupt: 8,000 nested elements, 40 KB, keep it busy for 1.2 s, twice
as many for four times as long. The system ends the process when its time is over, and the next page gets a new one.

The process runs this file alone, so that it starts in a tenth of a second: it imports nothing of the project.
"""

import codecs
import os
import signal
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import BinaryIO

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# There go the lengths of charset and page, then both; back come whether it is a text, its length and itself.
_ASKED, _ANSWERED = struct.Struct("!II"), struct.Struct("!?I")
# Memory that a page took serves the next: given back to the system and taken anew, it made half of the time.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_TOP_PAD_": str(1 << 26)}
# Processor time stands still while the machine is busy with other work: by the clock it may take so much longer.
_PATIENCE = 20
_START_SECONDS = 60


class ExtractionError(Exception):
    """A page that gives no text; the message ends a sentence that starts with the page."""


def main_text(page: bytes, charset: str | None = None, library: str = "resiliparse") -> str:
    """What a page says, without its menus and boilerplate, a block a line.

    Args:
        library: resiliparse, or trafilatura, which takes 20 times as long.
        charset: what the server called the encoding. As browsers do (WHATWG HTML, 13.2.3.2), a byte order mark comes
            before it, then the page's own meta element, then a guess from the bytes.

    Raises:
        ValueError: the page cannot be parsed.
    """
    content = _decoded(page, charset)
    if library == "trafilatura":
        import trafilatura

        # Its own deduplication remembers earlier pages, so that what a page gives would depend on them.
        return trafilatura.extract(content, include_comments=False, favor_precision=True, deduplicate=False) or ""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    text: str = extract_plain_text(HTMLTree.parse(content), main_content=True, alt_texts=False)
    return text


def _decoded(page: bytes, charset: str | None) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    known = next((name for mark, name in _MARKS if page.startswith(mark)), None)
    known = known or (map_encoding_to_html5(charset, fallback_utf8=False) if charset else None)
    encoding = known or detect_encoding(page, from_html_meta=True) or "utf-8"
    content: str = bytes_to_str(page, encoding, errors="replace")
    return content


class Extractor:
    """Calls `main_text` in another process, started for the first page and ended with the block.

    Args:
        seconds: of processor time a page.
        library: as in `main_text`.
    """

    def __init__(self, seconds: float, library: str = "resiliparse") -> None:
        self._seconds, self._library = seconds, library
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answers: BinaryIO | None = None

    def __enter__(self) -> "Extractor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, page: bytes, charset: str | None = None) -> str:
        """As `main_text`.

        Raises:
            ExtractionError: the page cannot be parsed, takes too long or ends the parser.
        """
        try:
            answered, answer = self._ask((charset or "").encode(), page)
        except TimeoutError as error:
            self._stop()
            raise ExtractionError(f"was not parsed in {self._deadline:.0f} s") from error
        except (EOFError, ConnectionError) as error:
            code = self._stop()
            if code == -signal.SIGPROF:
                raise ExtractionError(f"takes more than {self._seconds:g} s of processor time to parse") from error
            raise ExtractionError(f"ended the parser (exit code {code})") from error
        if not answered:
            raise ExtractionError(f"cannot be parsed ({answer.decode()})")
        return answer.decode("utf-8", "surrogatepass")

    @property
    def _deadline(self) -> float:
        return _START_SECONDS + _PATIENCE * self._seconds

    def _ask(self, charset: bytes, page: bytes) -> tuple[bool, bytes]:
        if self._socket is None or self._answers is None:
            self._socket, self._answers = self._start()
        self._socket.sendall(b"".join((_ASKED.pack(len(charset), len(page)), charset, page)))
        answered, size = _ANSWERED.unpack(_read(self._answers, _ANSWERED.size))
        return answered, _read(self._answers, size)

    def _start(self) -> tuple[socket.socket, BinaryIO]:
        here, there = socket.socketpair()
        here.settimeout(self._deadline)
        # Without -P this folder's modules would hide the standard library's.
        command = [sys.executable, "-P", __file__, str(there.fileno()), str(self._seconds), self._library]
        environment = {**os.environ, **_KEEP_MEMORY}
        with there:
            self._process = subprocess.Popen(
                command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        return here, here.makefile("rb")

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
        return code


def _read(file: BinaryIO, size: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: there are fewer.
    """
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _serve(connection: socket.socket, seconds: float, library: str) -> None:
    asked = connection.makefile("rb")
    while True:
        try:
            sizes = _ASKED.unpack(_read(asked, _ASKED.size))
            charset, page = (_read(asked, size) for size in sizes)
        except (EOFError, ConnectionError):
            return
        # What the signal does when it comes is to end the process.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            text = main_text(page, charset.decode() or None, library)
            answered, answer = True, text.encode("utf-8", "surrogatepass")
        except ValueError as error:
            answered, answer = False, str(error).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.sendall(b"".join((_ANSWERED.pack(answered, len(answer)), answer)))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own_end:
        _serve(own_end, float(sys.argv[2]), sys.argv[3])
