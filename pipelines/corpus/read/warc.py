"""Reads the main text of web pages from HTML files and WARC captures (ISO 28500)."""

import mmap
import re
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipelines.corpus.heartbeat import progress
from pipelines.corpus.read.extractor import ExtractionError, Extractor, PageRequest
from pipelines.corpus.read.http import Response, content, is_page, parse_response
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord, Item, Skipped

# A page whose text the parser has yet to send, or the result of a record that holds none.
Found = PageRequest | Item

# The bytes that a record starts with, by the suffix of the file.
_STARTS = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
_RECORD = b"WARC/1."
# Servers may send anything as a media type: only what looks like one becomes a name in the statistics.
_SHORT_TYPE = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,40}")
# Records that hold only requests and notes.
_ABOUT_OTHERS = (WarcRecordType.request, WarcRecordType.metadata, WarcRecordType.warcinfo)
_LINE_ENDS = b"\r\n\r\n"
_CHUNK = 1 << 16
# Pages requested before the text of an earlier one is used; more than the parser buffers has no effect.
_AHEAD = 16


def read_web(path: Path, extract: Extractor, skip: int = 0) -> Iterator[tuple[int, Item]]:
    """Reads the main text of an HTML file, or of each HTML page with status 200 in a WARC file, with its offset.

    A WARC file's conversion records, of which WET files consist, are texts already.

    Args:
        skip: number of a WARC file's records to pass over without parsing their pages.
    """
    if not path.name.lower().endswith((".html", ".htm")):
        yield from _in_order(path, _after(path, extract, skip))
    elif path.stat().st_size > MAXIMUM_RECORD_BYTES:
        yield 0, BadRecord(str(path), 0, f"{path} has more than {MAXIMUM_RECORD_BYTES:,} bytes; remove the file")
    else:
        try:
            yield 0, extract(path.read_bytes())
        except ExtractionError as error:
            yield 0, BadRecord(str(path), 0, f"{path} {error}; remove the file")


class _Gate:
    """Sends pages to the parser once it is open, and answers with an empty text before."""

    def __init__(self, extract: Extractor, is_open: bool) -> None:
        self._extract, self.is_open = extract, is_open

    def request(self, page: bytes, charset: str | None) -> PageRequest | str:
        return self._extract.request(page, charset) if self.is_open else ""


def _after(path: Path, extract: Extractor, skip: int) -> Iterator[tuple[int, Found]]:
    gate = _Gate(extract, not skip)
    for number, found in enumerate(_read_warc(path, gate)):
        if number >= skip:
            yield found
        else:
            progress()
        # The next record to be read follows this one.
        gate.is_open = number + 1 >= skip


def _in_order(path: Path, found: Iterator[tuple[int, Found]]) -> Iterator[tuple[int, Item]]:
    """Yields the texts in order, while later pages are already with the parser."""
    waiting: deque[tuple[int, Found]] = deque()
    for pair in found:
        waiting.append(pair)
        if len(waiting) > _AHEAD:
            yield _text_of(path, *waiting.popleft())
    while waiting:
        yield _text_of(path, *waiting.popleft())


def _text_of(path: Path, offset: int, page: Found) -> tuple[int, Item]:
    try:
        return offset, page.text() if isinstance(page, PageRequest) else page
    except ExtractionError as error:
        return offset, _bad(path, offset, str(error))


def _read_warc(path: Path, extract: _Gate) -> Iterator[tuple[int, Found]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start: int | None = 0
        while start is not None:
            bad = yield from _read_from(path, file, content, start, extract)
            if bad is None:
                return
            start = _next_record(path, content, bad.offset)
            lost = (len(content) if start is None else start) - bad.offset
            yield bad.offset, replace(bad, unread_bytes=lost, file_bytes=len(content))


def _read_from(
    path: Path, file: BinaryIO, content: mmap.mmap, start: int, extract: _Gate
) -> Generator[tuple[int, Found], None, BadRecord | None]:
    """Reads the pages from an offset on; returns the record where reading failed, None at the end.

    A record counts as intact only when the next one is found where its length implies.
    """
    file.seek(start)
    offset, length = start, 0
    page: Found | None = None
    records = iter(ArchiveIterator(file, parse_http=False))
    while True:
        try:
            record = next(records, None)
        except (OSError, ValueError) as error:
            end = _end_of_record(path, content, offset, length)
            if end is not None and page is not None:
                yield offset, page
            broken = offset if end is None else end
            return _bad(path, broken, f"is damaged or has the wrong length ({error})")
        if page is not None:
            yield offset, page
        if record is None:
            return None
        offset, length, page = record.stream_pos, record.content_length, None
        try:
            found = _load(record)
        except (OSError, ValueError) as error:
            return _bad(path, offset, f"is damaged ({error})")
        if found > MAXIMUM_RECORD_BYTES:
            page = _bad(path, offset, f"has {length:,} bytes, more than {MAXIMUM_RECORD_BYTES:,}")
        elif found != length:
            return _bad(path, offset, f"says it has {length:,} bytes and has {found:,}")
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
    if path.suffix.lower() == ".zst":
        return None
    if path.suffix.lower() != ".gz":
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


def _page(path: Path, record: WarcRecord, extract: _Gate) -> Found | None:
    """Requests the text of a response that is an HTML page with status 200, or decodes the text of a conversion.

    Returns:
        the request or text; the reason why a record holds neither; or None for a record about others, such as a
        request.
    """
    offset = record.stream_pos
    if record.record_type == WarcRecordType.conversion:
        # Common Crawl's WET files hold the text of pages, as UTF-8 (ISO 28500, 6.7).
        try:
            return _read_at_most(record, MAXIMUM_RECORD_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            return _bad(path, offset, f"is not UTF-8 at byte {error.start}")
    if record.record_type in _ABOUT_OTHERS:
        return None
    block = _read_at_most(record, MAXIMUM_RECORD_BYTES)
    if record.record_type == WarcRecordType.resource:
        # A file as it was found, without a protocol: its media type is that of the record.
        response = Response(200, {"content-type": record.headers.get("Content-Type") or ""}, block)
    elif record.record_type != WarcRecordType.response:
        return Skipped(f"record of type {(record.headers.get('WARC-Type') or '').lower()[:20]}")
    elif not block[:5].upper().startswith((b"HTTP/", b"ICY ")):
        # The record's own media type is often missing, or in capitals.
        return Skipped("another protocol than HTTP")
    else:
        response = parse_response(block)
    if response.status != 200:
        return Skipped(f"status {response.status}" if response.status else "no status line")
    try:
        body = content(response, MAXIMUM_RECORD_BYTES)
    except ValueError as error:
        return _bad(path, offset, f"cannot be decoded ({error})")
    if not is_page(response.media_type, body):
        known = _SHORT_TYPE.fullmatch(response.media_type)
        return Skipped(f"content type {response.media_type}" if known else "another content type")
    if len(body) > MAXIMUM_RECORD_BYTES:
        return _bad(path, offset, f"unpacks to more than {MAXIMUM_RECORD_BYTES:,} bytes")
    return extract.request(body, response.charset)


def _next_record(path: Path, content: mmap.mmap, broken: int) -> int | None:
    """Finds the start of the first readable record after a broken one."""
    mark = _STARTS.get(path.suffix.lower(), _RECORD)
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
