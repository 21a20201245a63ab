"""Reads documents from text, JSONL and Parquet files, and says exactly where one is broken."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
import pyarrow.parquet

from cluster.failures import UserError
from pipelines.corpus.bad import MAXIMUM_RECORD_BYTES, Bad, excerpt

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
WEB = (".html", ".htm", ".warc", ".warc.gz")
SUFFIXES = (".txt", *LINES, ".parquet", *WEB)

# What is lost of a damaged file before the damage: a read that fails gives nothing.
_BUFFER = 64 << 10


def read_file(path: Path, text_field: str) -> Iterator[str | Bad]:
    """The texts of a file: a .txt or .html file is one document, a JSONL line, a Parquet row, a WARC response one each.

    Raises:
        UserError: the file cannot be opened, or is Parquet without the text field.
    """
    try:
        if not path.stat().st_size:
            yield Bad(str(path), 0, f"{path} is empty; remove the file")
        elif path.name.endswith(".txt"):
            yield _read_text(path)
        elif path.name.endswith(".parquet"):
            yield from _read_parquet(path, text_field)
        elif path.name.endswith(WEB):
            # The HTML parser is loaded only where there are pages.
            from pipelines.corpus.web import read_web

            yield from read_web(path)
        else:
            yield from _read_lines(path, text_field)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _read_text(path: Path) -> str | Bad:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{path} is not UTF-8 at byte {error.start}; convert or remove the file"
        return Bad(str(path), error.start, reason, excerpt(data[error.start :]))


def _read_lines(path: Path, text_field: str) -> Iterator[str | Bad]:
    offset = 0
    with _open(path) as file:
        try:
            for number, (offset, line, size) in enumerate(_lines(file), start=1):
                if line.strip():
                    yield _parse(path, number, offset, line, size, text_field)
        except (EOFError, zlib.error) as error:
            yield _damaged(path, offset, error)
        except OSError as error:
            if error.errno is not None:
                raise
            # Arrow and gzip report what a decompressor refuses as an OSError without a number.
            yield _damaged(path, offset, error)


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _BUFFER))
    return path.open("rb")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Offset, content and length of every line; of one that is too long only the start is held, ever."""
    offset = 0
    while line := file.readline(MAXIMUM_RECORD_BYTES + 1):
        size = len(line)
        if size > MAXIMUM_RECORD_BYTES:
            whole = line.endswith(b"\n")
            line = line[:1000]
            while not whole and (piece := file.readline(_BUFFER)):
                size += len(piece)
                whole = piece.endswith(b"\n")
        yield offset, line, size
        offset += size


def _damaged(path: Path, offset: int, error: Exception) -> Bad:
    kind = "zstd" if path.name.endswith(".zst") else "gzip"
    reason = f"{path} is damaged {kind} ({error}) after byte {offset} of its content; fetch or compress it again"
    return Bad(str(path), offset, reason)


def _parse(path: Path, number: int, offset: int, line: bytes, size: int, text_field: str) -> str | Bad:
    where = f"{path} line {number}"

    def bad(complaint: str) -> Bad:
        return Bad(str(path), offset, f"{where}{complaint}", excerpt(line))

    if size > MAXIMUM_RECORD_BYTES:
        return bad(f" has {size:,} bytes, more than {MAXIMUM_RECORD_BYTES:,}; split or remove the line")
    try:
        row = json.loads(line.decode("utf-8-sig"))
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


def _read_parquet(path: Path, text_field: str) -> Iterator[str | Bad]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path} has no column {text_field!r}, only {names}; set text_field of this source")
            for batch in file.iter_batches(batch_size=1000, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if isinstance(text, str):
                        yield text
                    else:
                        kind = f"{path} row {number}: {text_field!r} is {type(text).__name__}, not text"
                        yield Bad(str(path), number, f"{kind}; mend or remove it")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError) as error:
        reason = f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}; write or fetch it again"
        yield Bad(str(path), number, reason)
    except OSError as error:
        if error.errno is not None:
            raise
        yield Bad(str(path), number, f"{path} is damaged after row {number}: {str(error).splitlines()[0]}")
