"""Reads documents from files of rows that are not lines: JSON arrays and objects over several lines, and CSV."""

import csv
import io
import json
from collections.abc import Iterator
from typing import BinaryIO

from cluster.errors import UserError
from cluster.run.storage.files import file_info, open_file
from cluster.run.storage.remote import shown_name
from pipelines.corpus.read.fields import FieldError, text_of
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord, DamageError, Item, unread
from pipelines.corpus.read.unpack import unpacked
from pipelines.data.encodings import encoding_advice, is_wide

# Characters read at once; more for a JSON value that is longer.
_PIECE = 1 << 16


def holds_lines(name: str, packing: str | None) -> bool:
    """Tests that a .json file has a JSON object on its first line, as C4's files do."""
    with open_file(name) as stored:
        try:
            start = unpacked(packing, stored, file_info(name).size).read(_PIECE)
        except DamageError:
            return True
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].strip()
    return first.startswith(b"{") and (first.endswith(b"}") or b"\n" not in start)


def read_values(name: str, packing: str | None, text_field: str, encoding: str) -> Iterator[tuple[int, Item]]:
    """Reads the texts of the JSON objects in an array, or in a row, with the number of each."""
    size = file_info(name).size
    number = 0
    with open_file(name) as stored:
        try:
            file = _text_file(packing, stored, size, encoding)
            held = file.read(_PIECE).lstrip()
            _refuse_wide(name, held)
            for number, row in enumerate(_values(file, stored, held)):
                yield number, _text(name, number, row, text_field, encoding)
        except DamageError as error:
            yield number, unread(name, number, f"after value {number + 1}", error, size, None)


def read_csv(
    name: str, packing: str | None, text_field: str, encoding: str, delimiter: str
) -> Iterator[tuple[int, Item]]:
    """Reads the texts of the rows of a CSV file, whose first row names the columns, with the number of each.

    Raises:
        UserError: there is no such column.
    """
    size = file_info(name).size
    # The limit is the process's; its default of 128 KB is less than many a page.
    csv.field_size_limit(MAXIMUM_RECORD_BYTES)
    number = 0
    with open_file(name) as stored:
        rows = csv.reader(_text_file(packing, stored, size, encoding), delimiter=delimiter)
        try:
            names = next(rows, [])
            _refuse_wide(name, "".join(names))
            if text_field not in names:
                had = ", ".join(names[:8])
                raise UserError(
                    f"{shown_name(name)} has no column {text_field!r}, only {had}; set text_field of this source"
                )
            while True:
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    yield number, BadRecord(name, number, f"{name} row {number + 1} is no CSV: {error}; fix the row")
                else:
                    if row is None:
                        return
                    yield number, _row_text(name, number, names, row, text_field, encoding)
                number += 1
        except DamageError as error:
            yield number, unread(name, number, f"after row {number}", error, size, None)


def _row_text(name: str, number: int, names: list[str], row: list[str], text_field: str, encoding: str) -> Item:
    if len(row) > len(names):
        # A text with a delimiter in it and without quotation marks would lose its end.
        more = f"has {len(row):,} fields and the first row {len(names):,}; put the text in quotation marks"
        return BadRecord(name, number, f"{name} row {number + 1} {more}")
    return _text(name, number, dict(zip(names, row, strict=False)), text_field, encoding)


def _text_file(packing: str | None, stored: BinaryIO, size: int, encoding: str) -> io.TextIOWrapper:
    known = "utf-8-sig" if encoding == "utf-8" else encoding
    # A byte that cannot be decoded makes its own row a bad record, and no other.
    return io.TextIOWrapper(unpacked(packing, stored, size), known, errors="surrogateescape", newline="")


def _text(name: str, number: int, row: object, text_field: str, encoding: str) -> Item:
    try:
        text = text_of(row, text_field)
    except FieldError as error:
        return BadRecord(name, number, f"{name} row {number + 1}{error}")
    if not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text):
        advice = f"has bytes that its encoding lacks; {encoding_advice(encoding)}, or fix the row"
        return BadRecord(name, number, f"{name} row {number + 1} {advice}")
    return text


def _refuse_wide(name: str, start: str) -> None:
    """Refuses a file that is in UTF-16 and read as UTF-8, by its first characters."""
    data = start.encode("utf-8", "surrogateescape")
    if is_wide(data):
        raise UserError(f"{shown_name(name)} is in UTF-16: set encoding of this source to utf-16, or convert the file")


def _values(file: io.TextIOWrapper, stored: BinaryIO, held: str) -> Iterator[object]:
    """Yields the values of an array, or of a row of values, one by one; `held` is the file's beginning, as read."""
    decoder = json.JSONDecoder()
    array = held.startswith("[")
    held = held[1:] if array else held
    while True:
        held = held.lstrip(" \t\r\n,")
        if not held and not (held := file.read(_PIECE)):
            if array:
                raise DamageError("JSON array without its end", stored.tell(), ends_early=True)
            return
        if array and held.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(held)
        except json.JSONDecodeError as error:
            more = file.read(max(_PIECE, len(held)))
            if not more or len(held) > MAXIMUM_RECORD_BYTES:
                raise DamageError(f"JSON, {error.msg}", stored.tell(), ends_early=not more) from error
            held += more
        except (RecursionError, ValueError) as error:
            raise DamageError(f"JSON, {str(error)[:100]}", stored.tell()) from error
        else:
            yield value
            held = held[end:]
