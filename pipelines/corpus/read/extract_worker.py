"""Takes the main text from web pages: the program of the process that an `Extractor` starts.

The process runs this file alone, so that it starts in a tenth of a second: it imports nothing of the project.
"""

import codecs
import signal
import socket
import struct
import sys
from collections.abc import Iterator

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# There go the lengths of charset and page, then both; back come whether it is a text, its length and itself.
ASKED, ANSWERED = struct.Struct("!II"), struct.Struct("!?I")
# Half of what the other side sends ahead, so that both have work.
_AT_ONCE = 1 << 16


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


def _serve(connection: socket.socket, seconds: float, library: str) -> None:
    """Answers until nobody asks or listens any more.

    Pages that came together are answered together: to wake the other process for each took 20 us, of 340 for a page of
    22 KB.
    """
    received = bytearray()
    try:
        while data := connection.recv(_AT_ONCE):
            received += data
            answers = [_answer(page, charset, seconds, library) for charset, page in _requests(received)]
            if answers:
                connection.sendall(b"".join(answers))
    except ConnectionError:
        return


def _requests(received: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Takes the charsets and pages that have come whole."""
    start = 0
    with memoryview(received) as view:
        while len(view) - start >= ASKED.size:
            charset, page = ASKED.unpack_from(view, start)
            middle = start + ASKED.size + charset
            if len(view) < middle + page:
                break
            yield bytes(view[middle - charset : middle]), bytes(view[middle : middle + page])
            start = middle + page
    del received[:start]


def _answer(page: bytes, charset: bytes, seconds: float, library: str) -> bytes:
    # What the signal does when it comes is to end the process.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        answered, answer = True, main_text(page, charset.decode() or None, library).encode("utf-8", "surrogatepass")
    except ValueError as error:
        answered, answer = False, str(error).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ANSWERED.pack(answered, len(answer)) + answer


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own_end:
        _serve(own_end, float(sys.argv[2]), sys.argv[3])
