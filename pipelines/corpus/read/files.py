"""Reads the documents of a file or a span of it, by its format, and counts what cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.errors import UserError
from cluster.run.files import file_info, local_file, open_file
from cluster.run.storage import StoredFile, as_storage_failure, is_remote, shown_name
from pipelines.corpus.read.columns import read_rows, row_groups
from pipelines.corpus.read.extractor import Extractor
from pipelines.corpus.read.lines import Span, read_lines
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord, Item, excerpt

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
WEB = (".html", ".htm", ".warc", ".warc.gz", ".warc.zst", ".wet", ".wet.gz", ".wet.zst")
SUFFIXES = (".txt", *LINES, ".parquet", *WEB)


@dataclass(frozen=True)
class Reading:
    """Settings for reading the files of a source.

    Attributes:
        text_field: field of JSONL lines or Parquet rows with the text.
        text_lines: whether every line of a .txt file is a document.
        extract: extracts the main text of web pages.
    """

    text_field: str
    text_lines: bool
    extract: Extractor


def suffix_of(name: str) -> str | None:
    """Finds the one of `SUFFIXES` that a path or URI ends with."""
    bare = name.partition("?")[0] if is_remote(name) else name
    return next((suffix for suffix in SUFFIXES if bare.endswith(suffix)), None)


def spans(file: StoredFile, text_lines: bool, size: int) -> list[Span]:
    """Cuts a file into spans of about `size` bytes; returns none if it is small or cannot be cut.

    Compressed lines, pages and captures cannot be cut: they have to be read from their start.
    """
    suffix = suffix_of(file.name)
    if file.size <= size:
        return []
    if suffix == ".jsonl" or (suffix == ".txt" and text_lines):
        return [(start, min(start + size, file.size)) for start in range(0, file.size, size)]
    return row_groups(file.name, size) if suffix == ".parquet" else []


def read_file(name: str, reading: Reading, span: Span | None = None) -> Iterator[tuple[int, Item]]:
    """Reads the texts of a file or of a span: each line, row or HTTP response, or a whole .txt or .html file.

    Yields:
        (place, text): the byte in the file (uncompressed, for lines), or the row; independent of spans.

    Raises:
        StorageError: the file's storage does not answer.
        UserError: the file cannot be opened, or is Parquet without the text field.
    """
    shown = shown_name(name)
    try:
        with as_storage_failure(shown):
            for place, item in _items(name, reading, span):
                yield place, _named(item, name, shown) if isinstance(item, BadRecord) else item
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from error


def _items(name: str, reading: Reading, span: Span | None) -> Iterator[tuple[int, Item]]:
    suffix = suffix_of(name) or ""
    if not file_info(name).size:
        yield 0, BadRecord(name, 0, f"{name} is empty; remove the file")
    elif suffix == ".parquet":
        yield from read_rows(name, reading.text_field, "utf-8", span)
    elif suffix in WEB:
        # Imported only where there are pages, since the parser of captures takes time to load.
        from pipelines.corpus.read.warc import read_web

        with local_file(name) as path:
            for place, item in read_web(path, reading.extract):
                yield place, _named(item, str(path), name) if isinstance(item, BadRecord) else item
    elif suffix == ".txt" and not reading.text_lines:
        yield 0, _read_text(name)
    else:
        packing = {".jsonl.gz": "gz", ".jsonl.zst": "zst"}.get(suffix)
        yield from read_lines(name, packing, None if suffix == ".txt" else reading.text_field, "utf-8", span)


def _named(bad: BadRecord, path: str, name: str) -> BadRecord:
    return replace(bad, file=name, reason=bad.reason.replace(path, name))


def _read_text(name: str) -> str | BadRecord:
    with open_file(name) as file:
        data = file.read(MAXIMUM_RECORD_BYTES + 1)
    if len(data) > MAXIMUM_RECORD_BYTES:
        return BadRecord(name, 0, f"{name} has more than {MAXIMUM_RECORD_BYTES:,} bytes; split it or set text_lines")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{name} is not UTF-8 at byte {error.start}; convert or remove the file"
        return BadRecord(name, error.start, reason, excerpt(data[error.start :]))
