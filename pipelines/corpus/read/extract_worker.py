"""Extracts the main text of web pages, as the program of the process that an `Extractor` starts.

It imports nothing of the project, so that the process starts in a tenth of a second.
"""

import codecs
import signal
import socket
import struct
import sys
from collections.abc import Iterator

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# A request is the lengths of charset and page, then both; a reply is whether it is a text or an error, its length, then
# itself.
REQUEST, REPLY = struct.Struct("!II"), struct.Struct("!?I")
# Half of the bytes that the extractor sends ahead, so that both processes stay busy.
_AT_ONCE = 1 << 16


def main_text(page: bytes, charset: str | None = None, library: str = "resiliparse") -> str:
    """Extracts the text of a page without menus and boilerplate, a block per line.

    Args:
        charset: encoding named by the server. In the order of browsers (WHATWG HTML, 13.2.3.2), a byte order mark takes
            precedence over it; without both the page's meta element decides, then a guess from the bytes.
        library: resiliparse, or trafilatura, which takes 20 times as long.

    Raises:
        ValueError: the page cannot be parsed.
    """
    content = _decoded(page, charset)
    if library == "trafilatura":
        import trafilatura

        # Its own deduplication remembers earlier pages, on which the text of a page would then depend.
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
    """Serves requests until the connection is closed.

    Pages received together are answered together: waking the other process for each took 20 us, of 340 for a page of
    22 KB.
    """
    received = bytearray()
    try:
        while data := connection.recv(_AT_ONCE):
            received += data
            replies = [_reply(page, charset, seconds, library) for charset, page in _requests(received)]
            if replies:
                connection.sendall(b"".join(replies))
    except ConnectionError:
        return


def _requests(received: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Removes the complete requests from the buffer, and yields their charsets and pages."""
    start = 0
    with memoryview(received) as view:
        while len(view) - start >= REQUEST.size:
            charset, page = REQUEST.unpack_from(view, start)
            middle = start + REQUEST.size + charset
            if len(view) < middle + page:
                break
            yield bytes(view[middle - charset : middle]), bytes(view[middle : middle + page])
            start = middle + page
    del received[:start]


def _reply(page: bytes, charset: bytes, seconds: float, library: str) -> bytes:
    # SIGPROF, which comes when the processor time is used up, ends the process.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        parsed, content = True, main_text(page, charset.decode() or None, library).encode("utf-8", "surrogatepass")
    except ValueError as error:
        parsed, content = False, str(error).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return REPLY.pack(parsed, len(content)) + content


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own_end:
        _serve(own_end, float(sys.argv[2]), sys.argv[3])
