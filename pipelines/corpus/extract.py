"""Takes the main text from web pages: the program of the process that an `Extractor` starts.

The process runs this file alone, so that it starts in a tenth of a second: it imports nothing of the project.
"""

import codecs
import signal
import socket
import struct
import sys
from typing import BinaryIO

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# There go the lengths of charset and page, then both; back come whether it is a text, its length and itself.
ASKED, ANSWERED = struct.Struct("!II"), struct.Struct("!?I")


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


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: there are fewer.
    """
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _serve(connection: socket.socket, seconds: float, library: str) -> None:
    """Answers until nobody asks or listens any more."""
    asked = connection.makefile("rb")
    while True:
        try:
            sizes = ASKED.unpack(read_exactly(asked, ASKED.size))
            charset, page = (read_exactly(asked, size) for size in sizes)
            answered, answer = _answer(page, charset, seconds, library)
            connection.sendall(b"".join((ANSWERED.pack(answered, len(answer)), answer)))
        except (EOFError, ConnectionError):
            return


def _answer(page: bytes, charset: bytes, seconds: float, library: str) -> tuple[bool, bytes]:
    # What the signal does when it comes is to end the process.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return True, main_text(page, charset.decode() or None, library).encode("utf-8", "surrogatepass")
    except ValueError as error:
        return False, str(error).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own_end:
        _serve(own_end, float(sys.argv[2]), sys.argv[3])
