"""Takes the main text from web pages in a process of its own, which a hostile page cannot hold up.

The parser is native code, which Python cannot interrupt: 8,000 nested elements, 40 KB, keep it busy for 1.2 s, twice
as many for four times as long. The system ends the process when its time is over, and the next page gets a new one.

The process runs this file alone, so that it starts in a tenth of a second: it imports nothing of the project.
"""

import codecs
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_TEXT, _ERROR = b"t", b"e"
# Processor time stands still while the machine is busy with other work: by the clock it may take so much longer.
_PATIENCE = 20
_START_SECONDS = 60


class ExtractionError(Exception):
    """A page that gives no text; the message ends a sentence that starts with the page."""


def main_text(page: bytes, charset: str | None = None) -> str:
    """What a page says, without its menus and boilerplate, a block a line.

    Args:
        charset: what the server called the encoding. As browsers do (WHATWG HTML, 13.2.3.2), a byte order mark comes
            before it, then the page's own meta element, then a guess from the bytes.

    Raises:
        ValueError: the page cannot be parsed.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
    from resiliparse.parse.html import HTMLTree

    known = next((name for mark, name in _MARKS if page.startswith(mark)), None)
    known = known or (map_encoding_to_html5(charset, fallback_utf8=False) if charset else None)
    encoding = known or detect_encoding(page, from_html_meta=True) or "utf-8"
    tree = HTMLTree.parse(bytes_to_str(page, encoding, errors="replace"))
    text: str = extract_plain_text(tree, main_content=True, alt_texts=False)
    return text


class Extractor:
    """Calls `main_text` in another process, started for the first page and ended with the block.

    Args:
        seconds: of processor time a page.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

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
        connection = self._connection or self._start()
        try:
            connection.send_bytes((charset or "").encode())
            connection.send_bytes(page)
            if not connection.poll(_START_SECONDS + _PATIENCE * self._seconds):
                self._stop()
                raise ExtractionError(f"was not parsed in {_START_SECONDS + _PATIENCE * self._seconds:.0f} s")
            answer = connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            code = self._stop()
            if code == -signal.SIGPROF:
                raise ExtractionError(f"takes more than {self._seconds:g} s of processor time to parse") from error
            raise ExtractionError(f"ended the parser (exit code {code})") from error
        if answer[:1] == _ERROR:
            raise ExtractionError(f"cannot be parsed ({answer[1:].decode()})")
        return answer[1:].decode("utf-8", "surrogatepass")

    def _start(self) -> Connection:
        here, there = Pipe()
        # Without -P this folder's modules would hide the standard library's.
        command = [sys.executable, "-P", __file__, str(there.fileno()), str(self._seconds)]
        self._process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)
        there.close()
        self._connection = here
        return here

    def _stop(self) -> int | None:
        if self._connection is None or self._process is None:
            return None
        self._connection.close()
        try:
            # It ends by itself when nobody listens, unless it is at work.
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(_START_SECONDS)
        self._connection = self._process = None
        return code


def _answer(connection: Connection, seconds: float) -> None:
    while True:
        try:
            charset = connection.recv_bytes().decode()
            page = connection.recv_bytes()
        except EOFError:
            return
        # What the signal does when it comes is to end the process.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = _TEXT + main_text(page, charset or None).encode("utf-8", "surrogatepass")
        except ValueError as error:
            answer = _ERROR + str(error).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(answer)


if __name__ == "__main__":
    _answer(Connection(int(sys.argv[1])), float(sys.argv[2]))
