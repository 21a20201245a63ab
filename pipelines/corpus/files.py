"""Reads documents from text, JSONL and Parquet files, and says exactly where one is broken."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
import pyarrow.parquet

from cluster.failures import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


def read_file(path: Path, text_field: str) -> Iterator[str]:
    """The texts of a file: a .txt file is one document, a JSONL line or a Parquet row is one each.

    Raises:
        UserError: the file cannot be read, a line is broken or has no text; the message names the place.
    """
    try:
        if path.name.endswith(".txt"):
            yield _read_text(path)
        elif path.name.endswith(".parquet"):
            yield from _read_parquet(path, text_field)
        elif path.name.endswith(".gz"):
            with gzip.open(path, "rb") as file:
                yield from _read_lines(path, cast(BinaryIO, file), text_field)
        else:
            with path.open("rb") as file:
                yield from _read_lines(path, file, text_field)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged gzip ({error}); fetch or compress it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert or remove the file") from error


def _read_lines(path: Path, file: BinaryIO, text_field: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON: {error.msg}; mend or remove the line") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 at byte {error.start}; mend or remove the line") from error
        except RecursionError as error:
            raise UserError(f"{where} is nested too deeply; mend or remove the line") from error
        if not isinstance(row, dict):
            raise UserError(f'{where} is not an object such as {{"{text_field}": "..."}}; mend or remove the line')
        yield _text_of(row, text_field, where)


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path} has no column {text_field!r}, only {names}; set text_field of this source")
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=[text_field]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text_of(row, text_field, f"{path} row {number}")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable Parquet file: {reason}; write or fetch it again") from error


def _text_of(row: dict[str, object], text_field: str, where: str) -> str:
    text = row.get(text_field)
    if isinstance(text, str):
        return text
    if text_field in row:
        raise UserError(f"{where}: {text_field!r} is {type(text).__name__}, not text; mend or remove it")
    fields = ", ".join(list(row)[:8]) or "nothing"
    raise UserError(f"{where} has no {text_field!r}, only {fields}; set text_field of this source or mend the line")
