"""Decodes stored HTTP responses as browsers do: what a header says wrongly about the body is ignored."""

import io
import re
import zlib
from dataclasses import dataclass

from fastwarc.stream_io import BrotliReader, ZstdReader

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"(?:HTTP/[\d.]+|ICY)[ \t]+(\d{3})", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"\s*([\w.+!#$&^-]+/[\w.+!#$&^-]+)\s*(?:;|,|$)")
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]+)""", re.IGNORECASE)
_PAGES = ("text/html", "application/xhtml+xml")
# Media types that say nothing, and starts of HTML: https://mimesniff.spec.whatwg.org/#mime-type-sniffing-algorithm
_UNKNOWN = ("", "unknown/unknown", "application/unknown")
_PAGE_START = re.compile(
    rb"\s*(?:\xef\xbb\xbf\s*)?<"
    rb"(?:!--|(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|TITLE|B|BODY|BR|P)[ \t\r\n>])",
    re.IGNORECASE,
)
# The start of markup. Of a thousand packed bodies about one begins so by chance.
_MARKUP = re.compile(rb"\s*(?:\xef\xbb\xbf\s*)?<[!?A-Za-z]")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 1 << 16


@dataclass(frozen=True)
class Response:
    """A stored HTTP response.

    Attributes:
        status: status code; 0 if there is no status line.
        headers: the headers by name in lower case; repeated ones are joined by commas.
        body: the body as transferred.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """Media type in lower case, or the empty string if the header is missing or is none."""
        found = _MEDIA_TYPE.match(self.headers.get("content-type", ""))
        return found[1].lower() if found else ""

    @property
    def charset(self) -> str | None:
        """Encoding that the header names."""
        found = _CHARSET.search(self.headers.get("content-type", ""))
        return found[1] if found else None


def parse_response(message: bytes) -> Response:
    """Parses a response, whose lines end with CRLF or with a bare line feed."""
    end = _HEAD_END.search(message)
    head, body = (message[: end.start()], message[end.end() :]) if end else (message, b"")
    first, *lines = head.splitlines() or [b""]
    status = _STATUS.match(first)
    headers: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.decode("latin-1")
        if text[:1] in (" ", "\t") and name:
            headers[name] += text
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower()
        if colon:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        else:
            name = ""
    return Response(int(status[1]) if status else 0, headers, body)


def is_page(media_type: str, body: bytes) -> bool:
    """Tests that a body is HTML, by its start if the media type says nothing."""
    return media_type in _PAGES or (media_type in _UNKNOWN and _PAGE_START.match(body) is not None)


def content(response: Response, most: int) -> bytes:
    """Decodes the body of a response.

    Unknown encodings are ignored, and so are known ones that the body does not have: many archives store
    the decoded body under the headers of the encoded one.

    Args:
        most: bytes at which decoding stops; a longer content is cut to one byte more.

    Raises:
        ValueError: the body starts as encoded, and is damaged or ends early.
    """
    body = response.body
    if "chunked" in response.headers.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    names = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]
    for name in reversed(names):
        body = _decoded(body, name, most)
    return body[: most + 1]


def _without_chunks(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while (size := _CHUNK_SIZE.match(body, at)) is not None:
        length = int(size[1], 16)
        if not length:
            return b"".join(pieces)
        piece = body[size.end() : size.end() + length]
        if len(piece) < length:
            break
        pieces.append(piece)
        at = size.end() + length
        at += 2 if body.startswith(b"\r\n", at) else body.startswith(b"\n", at)
    if not pieces:
        # Without a single chunk, the body was stored decoded.
        return body
    raise ValueError("its chunks end early")


def _decoded(body: bytes, name: str, most: int) -> bytes:
    if name in ("gzip", "x-gzip"):
        return _inflated(body, 31, most) if body.startswith(_GZIP_MAGIC) else body
    if name == "deflate":
        # RFC 9110 means zlib's format; servers also send raw deflate (RFC 1951).
        for window in (15, -15):
            try:
                return _inflated(body, window, most)
            except ValueError as error:
                damage = error
        return _plain(body, damage)
    if name in ("br", "zstd"):
        reader = (BrotliReader if name == "br" else ZstdReader)(io.BytesIO(body))
        pieces: list[bytes] = []
        try:
            while sum(map(len, pieces)) <= most and (piece := reader.read(_PIECE)):
                pieces.append(piece)
        except OSError as error:
            return _plain(body, ValueError(str(error)))
        return b"".join(pieces)
    return body


def _plain(body: bytes, damage: ValueError) -> bytes:
    """Returns a body that is no packed one, and raises the error of unpacking any other.

    Raises:
        ValueError: `damage`.
    """
    if _MARKUP.match(body):
        return body
    raise damage


def _inflated(body: bytes, window: int, most: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while body and size <= most:
        decompressor = zlib.decompressobj(window)
        try:
            piece = decompressor.decompress(body, most + 1 - size)
        except zlib.error as error:
            if pieces:
                # Bytes behind the last member are no content.
                break
            raise ValueError(str(error)) from error
        pieces.append(piece)
        size += len(piece)
        if not decompressor.eof and size <= most:
            raise ValueError("it ends early")
        body = decompressor.unused_data
        if window != 31:
            break
    return b"".join(pieces)
