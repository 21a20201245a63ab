"""Reads documents from text, JSONL and Parquet files or spans of them, and locates records that are broken."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import pyarrow
import pyarrow.parquet

from cluster.errors import UserError, first_line
from cluster.run.files import StoredFile, file_info, filesystem_of, is_remote, local_file, open_file
from pipelines.corpus.read.extractor import Extractor
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord, excerpt

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
WEB = (".html", ".htm", ".warc", ".warc.gz")
SUFFIXES = (".txt", *LINES, ".parquet", *WEB)

# Bytes lost before the damage in a damaged file, since a read that fails yields nothing.
_BUFFER = 64 << 10

# A range [start, stop) of the bytes of a file of lines, or of the row groups of a Parquet file.
Span = tuple[int, int]


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
    return _row_groups(file.name, size) if suffix == ".parquet" else []


def read_file(name: str, reading: Reading, span: Span | None = None) -> Iterator[tuple[int, str | BadRecord]]:
    """Reads the texts of a file or of a span: each line, row or HTTP response, or a whole .txt or .html file.

    Yields:
        (place, text): the byte in the file (uncompressed, for lines), or the row; independent of spans.

    Raises:
        UserError: the file cannot be opened, or is Parquet without the text field.
    """
    suffix = suffix_of(name)
    try:
        if not file_info(name).size:
            yield 0, BadRecord(name, 0, f"{name} is empty; remove the file")
        elif suffix == ".parquet":
            yield from _read_parquet(name, reading.text_field, span)
        elif suffix in WEB:
            # Imported only where there are pages, since the parser of captures takes time to load.
            from pipelines.corpus.read.warc import read_web

            with local_file(name) as path:
                for place, item in read_web(path, reading.extract):
                    yield place, _named(item, str(path), name) if isinstance(item, BadRecord) else item
        elif suffix == ".txt" and not reading.text_lines:
            yield 0, _read_text(name)
        else:
            yield from _read_lines(name, None if suffix == ".txt" else reading.text_field, span)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error


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


def _read_lines(name: str, text_field: str | None, span: Span | None) -> Iterator[tuple[int, str | BadRecord]]:
    end = 0
    with open_file(name) as stored, _unpacked(name, stored) as file:
        try:
            for number, (offset, line, size) in enumerate(_lines(file, span), start=1):
                end = offset + size
                if line.strip():
                    # The number of lines before a later span is unknown.
                    where = f"byte {offset}" if span and span[0] else f"line {number}"
                    yield offset, _parse(name, where, offset, line, size, text_field)
        except (EOFError, zlib.error) as error:
            yield end, _damaged(name, end, error)
        except OSError as error:
            if error.errno is not None:
                raise
            # Arrow and gzip report corrupt data as an OSError without an error number.
            yield end, _damaged(name, end, error)


def _unpacked(name: str, file: BinaryIO) -> BinaryIO:
    suffix = suffix_of(name)
    if suffix == ".jsonl.gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if suffix == ".jsonl.zst":
        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"), _BUFFER))
    return file


def _lines(file: BinaryIO, span: Span | None) -> Iterator[tuple[int, bytes, int]]:
    """Reads offset, content and length of every line that starts in a span, and only the start of a line too long.

    Each line thus belongs to exactly one span.
    """
    offset, stop = span or (0, None)
    if offset:
        # From the byte before, since a span may start exactly where a line does.
        file.seek(offset - 1)
        offset += _skip_line(file) - 1
    while (stop is None or offset < stop) and (line := file.readline(MAXIMUM_RECORD_BYTES + 1)):
        size = len(line)
        if size > MAXIMUM_RECORD_BYTES:
            size += 0 if line.endswith(b"\n") else _skip_line(file)
            line = line[:1000]
        yield offset, line, size
        offset += size


def _skip_line(file: BinaryIO) -> int:
    """Skips to the end of a line in bounded memory; returns the number of bytes skipped."""
    size = 0
    while piece := file.readline(_BUFFER):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _damaged(name: str, offset: int, error: Exception) -> BadRecord:
    kind = "zstd" if suffix_of(name) == ".jsonl.zst" else "gzip"
    reason = f"{name} is damaged {kind} ({error}) after byte {offset} of its content; fetch or compress it again"
    return BadRecord(name, offset, reason)


def _parse(name: str, where: str, offset: int, line: bytes, size: int, text_field: str | None) -> str | BadRecord:
    def bad(complaint: str) -> BadRecord:
        return BadRecord(name, offset, f"{name} {where}{complaint}", excerpt(line))

    if size > MAXIMUM_RECORD_BYTES:
        return bad(f" has {size:,} bytes, more than {MAXIMUM_RECORD_BYTES:,}; split or remove the line")
    try:
        content = line.decode("utf-8-sig")
        if text_field is None:
            return content.rstrip("\r\n")
        row = json.loads(content)
    except json.JSONDecodeError as error:
        return bad(f" is not valid JSON: {error.msg}; mend or remove the line")
    except UnicodeDecodeError as error:
        return bad(f" is not UTF-8 at byte {error.start}; mend or remove the line")
    except RecursionError:
        return bad(" is nested too deeply; mend or remove the line")
    if not isinstance(row, dict):
        return bad(f' is not an object such as {{"{text_field}": "..."}}; mend or remove the line')
    text = row.get(text_field)
    if isinstance(text, str):
        return text
    if text_field in row:
        return bad(f": {text_field!r} is {type(text).__name__}, not text; mend or remove it")
    fields = ", ".join(list(row)[:8]) or "nothing"
    return bad(f" has no {text_field!r}, only {fields}; set text_field of this source or mend the line")


def _open_parquet(name: str) -> pyarrow.parquet.ParquetFile:
    system, path = filesystem_of(name)
    return pyarrow.parquet.ParquetFile(path, filesystem=system)


def _row_groups(name: str, size: int) -> list[Span]:
    """Cuts a Parquet file into spans of row groups of about `size` bytes uncompressed; none if it cannot be read."""
    try:
        with _open_parquet(name) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    except (pyarrow.ArrowInvalid, OSError):
        # Reading it will report the error.
        return []
    found, start, held = [], 0, 0
    for group, group_size in enumerate(sizes):
        if held and held + group_size > size:
            found.append((start, group))
            start, held = group, 0
        held += group_size
    return [*found, (start, len(sizes))]


def _read_parquet(name: str, text_field: str, span: Span | None) -> Iterator[tuple[int, str | BadRecord]]:
    number = 0
    try:
        with _open_parquet(name) as file:
            if text_field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{name} has no column {text_field!r}, only {names}; set text_field of this source")
            start, stop = span or (0, file.num_row_groups)
            number = sum(file.metadata.row_group(group).num_rows for group in range(start))
            for batch in file.iter_batches(batch_size=1000, row_groups=range(start, stop), columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if isinstance(text, str):
                        yield number - 1, text
                    else:
                        kind = f"{name} row {number}: {text_field!r} is {type(text).__name__}, not text"
                        yield number - 1, BadRecord(name, number, f"{kind}; mend or remove it")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError) as error:
        reason = f"{name} is not a readable Parquet file: {first_line(error)}; write or fetch it again"
        yield number, BadRecord(name, number, reason)
    except OSError as error:
        if error.errno is not None:
            raise
        yield number, BadRecord(name, number, f"{name} is damaged after row {number}: {first_line(error)}")
