"""Web pages: HTML files and WARC captures (ISO 28500), reduced to their main text."""

import mmap
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipelines.corpus.read.bad_record import MAXIMUM_RECORD_BYTES, BadRecord
from pipelines.corpus.read.extractor import ExtractionError, Extractor, PageRequest

_PAGES = ("text/html", "application/xhtml+xml")
_GZIP_MEMBER = b"\x1f\x8b\x08"
_RECORD = b"WARC/1."
_LINE_ENDS = b"\r\n\r\n"
_PIECE = 1 << 16
# Pages with the parser while one before them is used; more than it takes at once gives nothing.
_AHEAD = 16


def read_web(path: Path, extract: Extractor) -> Iterator[tuple[int, str | BadRecord]]:
    """The main text of an HTML file, or of every HTML page that a WARC file holds with status 200, and where it is."""
    if ".warc" in path.name:
        yield from _in_turn(path, _read_warc(path, extract))
    elif path.stat().st_size > MAXIMUM_RECORD_BYTES:
        yield 0, BadRecord(str(path), 0, f"{path} has more than {MAXIMUM_RECORD_BYTES:,} bytes; remove the file")
    else:
        try:
            yield 0, extract(path.read_bytes())
        except ExtractionError as error:
            yield 0, BadRecord(str(path), 0, f"{path} {error}; remove the file")


def _in_turn(path: Path, found: Iterator[tuple[int, PageRequest | BadRecord]]) -> Iterator[tuple[int, str | BadRecord]]:
    """The texts of pages, of which later ones are sent to the parser before earlier ones are there."""
    waiting: deque[tuple[int, PageRequest | BadRecord]] = deque()
    for pair in found:
        waiting.append(pair)
        if len(waiting) > _AHEAD:
            yield _answered(path, *waiting.popleft())
    while waiting:
        yield _answered(path, *waiting.popleft())


def _answered(path: Path, offset: int, page: PageRequest | BadRecord) -> tuple[int, str | BadRecord]:
    try:
        return offset, page if isinstance(page, BadRecord) else page.text()
    except ExtractionError as error:
        return offset, _bad(path, offset, str(error))


def _read_warc(path: Path, extract: Extractor) -> Iterator[tuple[int, PageRequest | BadRecord]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start: int | None = 0
        while start is not None:
            broken = yield from _read_from(path, file, content, start, extract)
            start = _next_record(path, content, broken) if broken is not None else None


def _read_from(
    path: Path, file: BinaryIO, content: mmap.mmap, start: int, extract: Extractor
) -> Generator[tuple[int, PageRequest | BadRecord], None, int | None]:
    """The pages from an offset on; returns the offset of the record at which reading stopped, None at the end.

    A record is trusted only once the next one is found where its length says.
    """
    file.seek(start)
    offset, length = start, 0
    page: PageRequest | BadRecord | None = None
    records = iter(ArchiveIterator(file, parse_http=False))
    while True:
        try:
            record = next(records, None)
        except (OSError, ValueError) as error:
            end = _end_of_record(path, content, offset, length)
            if end is not None and page is not None:
                yield offset, page
            broken = offset if end is None else end
            yield broken, _bad(path, broken, f"is damaged or has the wrong length ({error})")
            return broken
        if page is not None:
            yield offset, page
        if record is None:
            return None
        offset, length, page = record.stream_pos, record.content_length, None
        try:
            found = _load(record)
        except (OSError, ValueError) as error:
            yield offset, _bad(path, offset, f"is damaged ({error})")
            return offset
        if found > MAXIMUM_RECORD_BYTES:
            page = _bad(path, offset, f"has {length:,} bytes, more than {MAXIMUM_RECORD_BYTES:,}")
        elif found != length:
            yield offset, _bad(path, offset, f"says it has {length:,} bytes and has {found:,}")
            return offset
        else:
            page = _page(path, record, extract)


def _load(record: WarcRecord) -> int:
    """Has the content of a record read into memory, unless it is too large; returns how many bytes there were."""
    if record.content_length > MAXIMUM_RECORD_BYTES:
        return len(_read_at_most(record, MAXIMUM_RECORD_BYTES + 1))
    record.freeze()
    # What was there, which need not be what the header said.
    return record.content_length


def _end_of_record(path: Path, content: mmap.mmap, offset: int, length: int) -> int | None:
    """Where a record ends, or None unless two line ends follow its block: what it says of its length is wrong."""
    if not path.name.endswith(".gz"):
        end = content.find(_LINE_ENDS, offset) + len(_LINE_ENDS) + length
        return end + len(_LINE_ENDS) if content[end : end + len(_LINE_ENDS)] == _LINE_ENDS else None
    unpacker = zlib.decompressobj(wbits=31)
    data, at = bytearray(), offset
    try:
        while not unpacker.eof and at < len(content) and len(data) <= 2 * MAXIMUM_RECORD_BYTES:
            data += unpacker.decompress(content[at : at + _PIECE])
            at += _PIECE
    except zlib.error:
        return None
    head = data.find(_LINE_ENDS) + len(_LINE_ENDS)
    if not unpacker.eof or len(data) != head + length + len(_LINE_ENDS):
        return None
    return min(at, len(content)) - len(unpacker.unused_data)


def _page(path: Path, record: WarcRecord, extract: Extractor) -> PageRequest | BadRecord | None:
    """A response that is a page; None of any other record."""
    if record.record_type != WarcRecordType.response or not record.is_http:
        return None
    offset = record.stream_pos
    try:
        record.parse_http(auto_decode="all")
        headers = record.http_headers
        if headers is None or headers.status_code != 200 or record.http_content_type not in _PAGES:
            return None
        body = _read_at_most(record, MAXIMUM_RECORD_BYTES + 1)
        if len(body) > MAXIMUM_RECORD_BYTES:
            return _bad(path, offset, f"unpacks to more than {MAXIMUM_RECORD_BYTES:,} bytes")
        return extract.ask(body, record.http_charset)
    except (OSError, ValueError) as error:
        return _bad(path, offset, f"cannot be decoded ({error})")


def _next_record(path: Path, content: mmap.mmap, broken: int) -> int | None:
    """Where the first readable record after a broken one starts."""
    mark = _GZIP_MEMBER if path.name.endswith(".gz") else _RECORD
    found = content.find(mark, broken + 1)
    while found >= 0 and not _readable(path, found):
        found = content.find(mark, found + 1)
    return found if found >= 0 else None


def _readable(path: Path, offset: int) -> bool:
    """Whether a record starts here: the mark of a gzip member also turns up by chance."""
    with path.open("rb") as file:
        file.seek(offset)
        try:
            return next(iter(ArchiveIterator(file, parse_http=False)), None) is not None
        except (OSError, ValueError):
            return False


def _read_at_most(record: WarcRecord, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := record.reader.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _bad(path: Path, offset: int, complaint: str) -> BadRecord:
    return BadRecord(str(path), offset, f"{path} at byte {offset}: the record {complaint}; fetch the file again")
