"""Reads documents from files of lines, packed or not, and goes on behind lines and members that are damaged."""

import io
import json
from collections.abc import Iterator
from typing import BinaryIO

from cluster.run.storage.files import file_info, open_file
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.read.fields import FieldError, text_of
from pipelines.corpus.read.records import MAXIMUM_RECORD_BYTES, BadRecord, DamageError, Item, excerpt, unread
from pipelines.corpus.read.unpack import BUFFER, unpacker
from pipelines.data.encodings import conversion, encoding_advice, is_wide

# A range [start, stop) of the bytes of a file of lines, or of the row groups of a Parquet file.
Span = tuple[int, int]


def read_lines(
    name: str, packing: str | None, text_field: str | None, encoding: str, span: Span | None, skip: int = 0
) -> Iterator[tuple[int, Item]]:
    """Reads the text of every line that starts in a span, with the byte of the unpacked content where it starts.

    Args:
        name: path or URI of the file.
        packing: gz, zst or None.
        text_field: field of the JSON object on the line; None if the line itself is the text.
        encoding: the encoding of the lines; a line feed has to be one byte in it.
        span: the span to read of a file that is not packed; None for all of it.
        skip: number of lines, and places of damage, to pass over without parsing.

    Raises:
        StorageError: the file's storage does not answer.
    """
    size = file_info(name).size
    with open_file(name) as stored:
        packed = unpacker(packing, stored, size)
        base, damaged = 0, False
        while True:
            file = io.BufferedReader(packed, BUFFER) if packed else stored
            end = base
            try:
                if damaged and text_field is None:
                    # Half a line would pass for a whole text and is skipped; half a JSON object is a bad record anyway.
                    base += _skip_line(file)
                for number, (offset, line, length) in enumerate(_lines(file, span, base), start=1):
                    end = offset + length
                    if not line.strip():
                        continue
                    if skip:
                        skip -= 1
                        progress()
                    else:
                        # The number of lines before a later span, or in damaged content, is unknown.
                        where = f"byte {offset}" if damaged or (span and span[0]) else f"line {number}"
                        yield offset, _parse(name, where, offset, line, length, text_field, encoding)
                return
            except DamageError as error:
                assert packed is not None
                assert isinstance(file, io.BufferedReader)
                # Without `detach`, the reader would close the file under it when it is dropped.
                file.detach()
                skipped = packed.skip_damage()
                if skip:
                    skip -= 1
                else:
                    yield end, unread(name, end, f"after byte {end} of its content", error, size, skipped)
                if skipped is None:
                    return
                base, damaged = packed.produced, True


def _lines(file: BinaryIO, span: Span | None, base: int) -> Iterator[tuple[int, bytes, int]]:
    """Reads offset, content and length of every line that starts in a span, and only the start of a line too long.

    Each line thus belongs to exactly one span.
    """
    offset, stop = span or (base, None)
    if span and offset:
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
    while piece := file.readline(BUFFER):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _parse(
    name: str, where: str, offset: int, line: bytes, size: int, text_field: str | None, encoding: str
) -> str | BadRecord:
    def bad(complaint: str) -> BadRecord:
        return BadRecord(name, offset, f"{name} {where}{complaint}", excerpt(line))

    if size > MAXIMUM_RECORD_BYTES:
        return bad(f" has {size:,} bytes, more than {MAXIMUM_RECORD_BYTES:,}; split or remove the line")
    if encoding == "utf-8" and is_wide(line):
        # Files in UTF-16 cannot be cut into lines.
        return bad(f" is not UTF-8; {conversion(line)}")
    try:
        content = line.decode("utf-8-sig" if encoding == "utf-8" else encoding)
        if text_field is None:
            return content.rstrip("\r\n")
        return text_of(json.loads(content), text_field)
    except json.JSONDecodeError as error:
        return bad(f" is not valid JSON: {error.msg}; fix or remove the line")
    except UnicodeDecodeError as error:
        advice = f"{encoding_advice(encoding)}, or fix the line"
        return bad(f" is not {encoding.upper()} at byte {error.start}; {advice}")
    except RecursionError:
        return bad(" is nested too deeply; fix or remove the line")
    except FieldError as error:
        return bad(str(error))
    except ValueError:
        # Python converts no number of more than 4,300 digits, since the time grows with their square.
        return bad(" has a number of too many digits; fix or remove the line")
