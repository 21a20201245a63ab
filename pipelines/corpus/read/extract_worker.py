"""Extracts the main text of web pages, as the program of the process that an `Extractor` starts.

It imports nothing of the project, so that the process starts in a tenth of a second.
"""

import codecs
import re
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Browsers read these labels' supersets: https://encoding.spec.whatwg.org/#names-and-labels
_DECODERS = {
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "iso8859-11": "cp874",
}
# Encodings that the detector names otherwise than the labels of browsers do.
_DETECTED = {"cp949": "cp949", "iso-2022-kr": "iso2022_kr", "hz-gb-2312": "hz"}
# The characters that Python's cp932 makes of the bytes A0, FD, FE and FF, which are no part of the encoding.
_PRIVATE = frozenset("\uf8f0\uf8f1\uf8f2\uf8f3")
_META = re.compile(rb"""<meta\s[^>]{0,500}?charset\s*=\s*["']?\s*([^\s"'/>;]{1,40})""", re.IGNORECASE)
_PIECES = re.compile(rb"[\n<>.,]")
_PARTS = 8
# Characters beyond ASCII for each replacement that speak for an encoding; by chance a pair of bytes is one character of
# most multi-byte encodings in one case of two to three.
_GOOD = 4
_HANDLER = "triptych-replace"
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
    content = decoded(page, charset)
    if library == "trafilatura":
        import trafilatura

        # Its own deduplication remembers earlier pages, on which the text of a page would then depend.
        return trafilatura.extract(content, include_comments=False, favor_precision=True, deduplicate=False) or ""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    text: str = extract_plain_text(HTMLTree.parse(content), main_content=True, alt_texts=False)
    return text


def decoded(page: bytes, charset: str | None) -> str:
    """Decodes a page as browsers do (WHATWG HTML, 13.2.3.2; WHATWG Encoding), and corrects wrong labels.

    Bytes that the encoding lacks become U+FFFD, one by one. The label is given up only if it needs replacements where
    UTF-8 needs none, or if fewer than `_GOOD` characters a replacement speak for it: then label, UTF-8 or a guess is
    taken, whichever needs the fewest replacements.
    """
    known = next((name for mark, name in _MARKS if page.startswith(mark)), None)
    known = known or _codec(charset) or _named_in(page)
    if known:
        content, replaced = _replaced(page, known)
        # Labels of UTF-16 are often wrong, and any text can be read by it.
        if not replaced and not (known.startswith("utf-16") and b"\0" not in page):
            return content
    unicode, broken = _replaced(page, "utf-8")
    if not broken or (not known and _speaks_for_itself(unicode, broken)):
        return unicode
    if known and not known.startswith("utf-16") and _speaks_for_itself(content, replaced):
        return content
    guess, wrong = _replaced(page, _guess(page))
    found = [(replaced, content)] if known else []
    return min([*found, (broken, unicode), (wrong, guess)], key=lambda pair: pair[0])[1]


def _codec(label: str | None) -> str | None:
    """Returns Python's name of the decoder that a label stands for in browsers; None for an unknown label."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    name: str | None = map_encoding_to_html5(label, fallback_utf8=False) if label else None
    return _DECODERS.get(name, name) if name else None


def _named_in(page: bytes) -> str | None:
    """Returns the decoder that a meta element names in the first 1,024 bytes.

    They could be read, so a page that names UTF-16 there is UTF-8.
    """
    found = _META.search(page, 0, 1024)
    name = _codec(found[1].decode("ascii", "ignore")) if found else None
    return "utf-8" if name and name.startswith("utf-16") else name


def _replaced(page: bytes, codec: str) -> tuple[str, int]:
    """Decodes a page; returns it with the number of bytes replaced."""
    for mark, name in _MARKS:
        if name == codec and page.startswith(mark):
            page = page[len(mark) :]
    with suppress(UnicodeDecodeError):
        content = page.decode(codec)
        if codec != "cp932" or _PRIVATE.isdisjoint(content):
            return content, 0
    count = 0

    def replace(error: UnicodeError) -> tuple[str, int]:
        nonlocal count
        assert isinstance(error, UnicodeDecodeError)
        data = error.object[error.start : error.start + 2]
        if codec == "euc_jp":
            # NEC's row 13, such as circled digits, which browsers have and Python's codec lacks.
            with suppress(UnicodeDecodeError):
                return data.decode("euc_jis_2004"), error.start + 2
        if codec.startswith(("cp125", "cp874")) and 0x80 <= data[0] < 0xA0:
            return chr(data[0]), error.start + 1
        count += 1
        return "\ufffd", max(error.end, error.start + 1) if codec == "utf-8" else error.start + 1

    codecs.register_error(_HANDLER, replace)
    content = page.decode(codec, _HANDLER)
    if codec == "cp932":
        count += sum(map(content.count, _PRIVATE))
        content = content.translate(dict.fromkeys(map(ord, _PRIVATE), "\ufffd"))
    return content, count


def _speaks_for_itself(content: str, replaced: int) -> bool:
    """Tests that a text has enough characters beyond ASCII for every replacement that its encoding is the right one."""
    beyond = len(content) - len(content.encode("ascii", "ignore")) - replaced
    return beyond >= _GOOD * replaced


def _guess(page: bytes) -> str:
    """Guesses the decoder of a page without a usable label.

    The detector gives up, or takes the page for Windows-1252, at one byte that an encoding lacks: then the bytes that
    no multi-byte encoding has are left out, and the detector judges parts of the page, whose majority decides.
    """
    from resiliparse.parse.encoding import detect_encoding

    def detected(data: bytes) -> str | None:
        name: str | None = detect_encoding(data, html5_compatible=False)
        return None if name in (None, "ascii", "utf-8") else _DETECTED.get(name) or _codec(name)

    first = detected(page)
    if first and first != "cp1252":
        return first
    lines = [line for line in _PIECES.split(page.translate(None, b"\xff\x80")) if not line.isascii()]
    size = max(1, -(-len(lines) // _PARTS))
    parts = [b"\n".join(lines[start : start + size]) for start in range(0, len(lines), size)]
    votes = Counter(name for part in parts if (name := detected(part)) and name != "cp1252")
    # The sort makes ties independent of the order of the parts.
    best = sorted(votes.items(), key=lambda pair: (-pair[1], pair[0]))
    return best[0][0] if best and 2 * best[0][1] >= len(parts) else "cp1252"


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
