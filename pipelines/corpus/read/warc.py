"""Reads the main text of web pages from HTML files and WARC captures (ISO 28500)."""

import mmap
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipelines.corpus.read.extractor import ExtractionError, Extractor, PageRequest
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord

_PAGES = ("text/html", "application/xhtml+xml")
_GZIP_MAGIC = b"\x1f\x8b\x08"
_RECORD = b"WARC/1."
_LINE_ENDS = b"\r\n\r\n"
_CHUNK = 1 << 16
# Pages requested before the text of an earlier one is used; more than the parser buffers has no effect.
_AHEAD = 16


def read_web(path: Path, extract: Extractor) -> Iterator[tuple[int, str | BadRecord]]:
    """Reads the main text of an HTML file, or of each HTML page with status 200 in a WARC file, with its offset."""
    if ".warc" in path.name:
        yield from _in_order(path, _read_warc(path, extract))
    elif path.stat().st_size > MAXIMUM_RECORD_BYTES:
        yield 0, BadRecord(str(path), 0, f"{path} has more than {MAXIMUM_RECORD_BYTES:,} bytes; remove the file")
    else:
        try:
            yield 0, extract(path.read_bytes())
        except ExtractionError as error:
            yield 0, BadRecord(str(path), 0, f"{path} {error}; remove the file")


def _in_order(
    path: Path, found: Iterator[tuple[int, PageRequest | BadRecord]]
) -> Iterator[tuple[int, str | BadRecord]]:
    """Yields the texts in order, while later pages are already with the parser."""
    waiting: deque[tuple[int, PageRequest | BadRecord]] = deque()
    for pair in found:
        waiting.append(pair)
        if len(waiting) > _AHEAD:
            yield _text_of(path, *waiting.popleft())
    while waiting:
        yield _text_of(path, *waiting.popleft())


def _text_of(path: Path, offset: int, page: PageRequest | BadRecord) -> tuple[int, str | BadRecord]:
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
    """Reads the pages from an offset on; returns the offset of the record where reading failed, None at the end.

    A record counts as intact only when the next one is found where its length implies.
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
    """Loads the content of a record into memory unless it is too large; returns the number of bytes found."""
    if record.content_length > MAXIMUM_RECORD_BYTES:
        return len(_read_at_most(record, MAXIMUM_RECORD_BYTES + 1))
    record.freeze()
    # The bytes found, which may differ from the header's length.
    return record.content_length


def _end_of_record(path: Path, content: mmap.mmap, offset: int, length: int) -> int | None:
    """Finds the end of a record, or None if its block is not followed by two line ends: its length is wrong then."""
    if not path.name.endswith(".gz"):
        end = content.find(_LINE_ENDS, offset) + len(_LINE_ENDS) + length
        return end + len(_LINE_ENDS) if content[end : end + len(_LINE_ENDS)] == _LINE_ENDS else None
    decompressor = zlib.decompressobj(wbits=31)
    data, at = bytearray(), offset
    try:
        while not decompressor.eof and at < len(content) and len(data) <= 2 * MAXIMUM_RECORD_BYTES:
            data += decompressor.decompress(content[at : at + _CHUNK])
            at += _CHUNK
    except zlib.error:
        return None
    head = data.find(_LINE_ENDS) + len(_LINE_ENDS)
    if not decompressor.eof or len(data) != head + length + len(_LINE_ENDS):
        return None
    return min(at, len(content)) - len(decompressor.unused_data)


def _page(path: Path, record: WarcRecord, extract: Extractor) -> PageRequest | BadRecord | None:
    """Requests the text of a record that is an HTML page with status 200; returns None for any other record."""
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
        return extract.request(body, record.http_charset)
    except (OSError, ValueError) as error:
        return _bad(path, offset, f"cannot be decoded ({error})")


def _next_record(path: Path, content: mmap.mmap, broken: int) -> int | None:
    """Finds the start of the first readable record after a broken one."""
    mark = _GZIP_MAGIC if path.name.endswith(".gz") else _RECORD
    found = content.find(mark, broken + 1)
    while found >= 0 and not _readable(path, found):
        found = content.find(mark, found + 1)
    return found if found >= 0 else None


def _readable(path: Path, offset: int) -> bool:
    """Tests that a record starts at an offset, since the magic bytes of gzip also occur by chance."""
    with path.open("rb") as file:
        file.seek(offset)
        try:
            return next(iter(ArchiveIterator(file, parse_http=False)), None) is not None
        except (OSError, ValueError):
            return False


def _read_at_most(record: WarcRecord, size: int) -> bytes:
    chunks: list[bytes] = []
    while size > 0 and (chunk := record.reader.read(size)):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _bad(path: Path, offset: int, complaint: str) -> BadRecord:
    return BadRecord(str(path), offset, f"{path} at byte {offset}: the record {complaint}; fetch the file again")
