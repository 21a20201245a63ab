"""Reads the documents of a file or a span of it, by its format, with a bad record in place of each that is
unreadable."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from cluster.errors import UserError
from cluster.run.storage.files import file_info, local_file, open_file
from cluster.run.storage.remote import StoredFile, as_storage_failure, is_remote, shown_name
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.read.columns import read_rows, row_groups
from pipelines.corpus.read.extractor import Extractor
from pipelines.corpus.read.lines import Span, read_lines
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord, DamageError, Item, Skipped, excerpt, unread
from pipelines.corpus.read.rows import holds_lines, read_csv, read_values
from pipelines.corpus.read.unpack import unpacked
from pipelines.data.encodings import encoding_advice, is_wide, likely_encoding

# Kinds of files by suffix, in any case; those of `_PACKED` may also end with .gz or .zst.
_KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".html": "page",
    ".htm": "page",
    ".warc": "capture",
    ".wet": "capture",
}
_PACKED = ("text", "lines", "json", "csv", "capture")
_PACKINGS = {".gz": "gz", ".zst": "zst"}
SUFFIXES = (*_KINDS, *_PACKINGS)


class Format(NamedTuple):
    """A file's format: one of the kinds of `_KINDS`, packed as gz or zst or not at all."""

    kind: str
    packing: str | None


@dataclass(frozen=True)
class Reading:
    """Settings for reading the files of a source.

    Attributes:
        text_field: field of JSONL lines or Parquet rows with the text.
        text_lines: whether every line of a .txt file is a document.
        extract: extracts the main text of web pages.
        encoding: the encoding of text, JSON and CSV; pages name their own.
    """

    text_field: str
    text_lines: bool
    extract: Extractor
    encoding: str = "utf-8"


def format_of(name: str) -> Format | None:
    """Finds the format of a path or URI by its suffixes; None if the file cannot be read."""
    bare = (name.partition("?")[0] if is_remote(name) else name).lower()
    packing = next((packing for suffix, packing in _PACKINGS.items() if bare.endswith(suffix)), None)
    suffix = PurePosixPath(bare).with_suffix("").suffix if packing else PurePosixPath(bare).suffix
    kind = _KINDS.get(suffix)
    return None if kind is None or (packing and kind not in _PACKED) else Format(kind, packing)


def spans(file: StoredFile, text_lines: bool, size: int) -> list[Span]:
    """Cuts a file into spans of about `size` bytes; returns none if it is small or cannot be cut.

    Compressed lines, pages and captures cannot be cut: they have to be read from their start.
    """
    if file.size <= size:
        return []
    kind, packing = format_of(file.name) or (None, None)
    if not packing and (kind == "lines" or (kind == "text" and text_lines)):
        return [(start, min(start + size, file.size)) for start in range(0, file.size, size)]
    return row_groups(file.name, size) if kind == "parquet" else []


def is_read_from_its_start(name: str, text_lines: bool) -> bool:
    """Tests for a file of many records of which none can be read without those before it."""
    kind, packing = format_of(name) or (None, None)
    if kind == "lines" or (kind == "text" and text_lines):
        return packing is not None
    return kind in ("json", "csv", "capture")


def read_file(name: str, reading: Reading, span: Span | None = None, skip: int = 0) -> Iterator[tuple[int, Item]]:
    """Reads the texts of a file or of a span: each line, row or HTTP response, or a whole .txt or .html file.

    Args:
        skip: number of records to pass over, which costs no more than to unpack them where the format allows it.

    Yields:
        (place, text): the byte in the file (uncompressed, for lines), or the row; independent of spans.

    Raises:
        StorageError: the file's storage does not answer.
        UserError: the file cannot be opened, or is Parquet without the text field.
    """
    shown = shown_name(name)
    try:
        with as_storage_failure(shown):
            for place, item in _items(name, reading, span, skip):
                yield place, _named(item, name, shown) if isinstance(item, BadRecord) else item
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from error


def _items(name: str, reading: Reading, span: Span | None, skip: int) -> Iterator[tuple[int, Item]]:
    kind, packing = format_of(name) or ("text", None)
    field, encoding = reading.text_field, reading.encoding
    if not file_info(name).size and packing is None and kind in ("text", "lines"):
        # A file of this kind is complete with any number of lines, so an empty one is no error.
        yield 0, Skipped("empty files")
    elif not file_info(name).size:
        yield 0, BadRecord(name, 0, f"{name} is empty; remove the file")
    elif kind == "parquet":
        yield from _after(read_rows(name, field, encoding, span), skip)
    elif kind in ("page", "capture"):
        # Imported only where there are pages, since the parser of captures takes time to load.
        from pipelines.corpus.read.warc import read_web

        with local_file(name, progress) as path:
            for place, item in read_web(path, reading.extract, skip):
                yield place, _named(item, str(path), name) if isinstance(item, BadRecord) else item
    elif kind == "csv":
        rows = read_csv(name, packing, field, encoding, "\t" if ".tsv" in name.lower() else ",")
        yield from _after(rows, skip)
    elif kind == "text" and not reading.text_lines:
        yield 0, _read_text(name, packing, encoding)
    elif kind == "json" and not holds_lines(name, packing):
        yield from _after(read_values(name, packing, field, encoding), skip)
    else:
        if "\n".encode(encoding) != b"\n":
            raise UserError(f"cannot cut {shown_name(name)} into lines in {encoding}; convert it to UTF-8")
        yield from read_lines(name, packing, None if kind == "text" else field, encoding, span, skip)


def _after(items: Iterator[tuple[int, Item]], skip: int) -> Iterator[tuple[int, Item]]:
    for number, item in enumerate(items):
        if number >= skip:
            yield item
        else:
            progress()


def _named(bad: BadRecord, path: str, name: str) -> BadRecord:
    return replace(bad, file=name, reason=bad.reason.replace(path, name))


def _read_text(name: str, packing: str | None, encoding: str) -> str | BadRecord:
    size = file_info(name).size
    with open_file(name) as stored:
        try:
            data = unpacked(packing, stored, size).read(MAXIMUM_RECORD_BYTES + 1)
        except DamageError as error:
            return unread(name, 0, "from its start", error, size, None)
    if len(data) > MAXIMUM_RECORD_BYTES:
        return BadRecord(name, 0, f"{name} has more than {MAXIMUM_RECORD_BYTES:,} bytes; split it or set text_lines")
    if encoding == "utf-8" and is_wide(data):
        reason = f"{name} is not UTF-8; set encoding of this source to {likely_encoding(data)}, or convert it"
        return BadRecord(name, 0, reason, excerpt(data))
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        advice = f"{encoding_advice(encoding)}, or convert it"
        reason = f"{name} is not {encoding.upper()} at byte {error.start}; {advice}"
        return BadRecord(name, error.start, reason, excerpt(data[error.start :]))
