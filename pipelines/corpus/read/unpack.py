"""Unpacks gzip and zstd files piece by piece, and goes on behind damage where another member starts."""

import io
import zlib
from abc import abstractmethod
from typing import BinaryIO, cast

import pyarrow

from pipelines.corpus.read.records import DamageError

BUFFER = 64 << 10
_GZIP_MAGIC = b"\x1f\x8b\x08"
# Stored bytes decompressed at once: those before the damage in a piece are lost with it.
_PIECE = 8 << 10
# The most bytes that a piece is unpacked to at once: deflate packs up to 1,032 bytes into one.
_MOST = 1 << 20
# Bytes of a member that have to unpack before it counts as found: its magic number also occurs by chance.
_TRIED = 4 << 10


class Unpacked(io.RawIOBase):
    """The content of a packed file as a stream.

    Reading raises a `DamageError`, after which `skip_damage` finds the place where the stream goes on.

    Attributes:
        produced: bytes of content read so far.
    """

    def __init__(self, stored: BinaryIO) -> None:
        super().__init__()
        self._stored = stored
        self.produced = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        self.produced += len(data)
        return len(data)

    @abstractmethod
    def _next(self, size: int) -> bytes:
        """Reads at most `size` bytes of content; none at its end."""

    def skip_damage(self) -> int | None:
        """Goes to the next place from which the file can be read.

        Returns:
            the number of stored bytes skipped since the damage, or None if nothing more can be read.
        """
        return None


class Gunzipped(Unpacked):
    """The content of a gzip file (RFC 1952): one or more members, each of which can be read without the others."""

    def __init__(self, stored: BinaryIO) -> None:
        super().__init__(stored)
        # Stored bytes read, and those of them not yet passed to the member's decompressor.
        self._at, self._rest = 0, b""
        self._member: zlib._Decompress | None = None

    def _next(self, size: int) -> bytes:
        while True:
            if (self._member is None or self._member.eof) and not self._start():
                return b""
            assert self._member is not None
            piece = self._member.unconsumed_tail or self._rest or self._read()
            before = self._at - len(piece)
            try:
                data = self._member.decompress(piece, min(size, _MOST))
            except zlib.error as error:
                self._at = before
                raise DamageError(f"gzip, {error}", before) from error
            self._rest = self._member.unused_data
            if data:
                return data
            if not piece and not self._member.eof:
                raise DamageError("gzip that ends early", self._at, ends_early=True)

    def _start(self) -> bool:
        """Starts the next member; returns False at the end of the file, which zeros may fill up."""
        while True:
            if self._member is not None:
                self._rest = self._rest.lstrip(b"\0")
            if self._rest:
                break
            self._rest = self._read()
            if not self._rest:
                return False
        self._member = zlib.decompressobj(wbits=31)
        return True

    def _read(self) -> bytes:
        data = self._stored.read(_PIECE)
        self._at += len(data)
        return data

    def skip_damage(self) -> int | None:
        damaged = self._at
        start, held = damaged, b""
        self._stored.seek(damaged)
        while piece := self._stored.read(_MOST):
            held += piece
            found = held.find(_GZIP_MAGIC, 1 if start == damaged else 0)
            while found >= 0:
                if self._starts_member(start + found):
                    self._at, self._rest, self._member = start + found, b"", zlib.decompressobj(wbits=31)
                    self._stored.seek(self._at)
                    return self._at - damaged
                found = held.find(_GZIP_MAGIC, found + 1)
            keep = len(_GZIP_MAGIC) - 1
            start, held = start + len(held) - keep, held[-keep:]
        return None

    def _starts_member(self, offset: int) -> bool:
        here = self._stored.tell()
        self._stored.seek(offset)
        data = self._stored.read(_TRIED)
        self._stored.seek(here)
        try:
            return bool(zlib.decompressobj(wbits=31).decompress(data, _MOST))
        except zlib.error:
            return False


class Unzstd(Unpacked):
    """The content of a zstd file (RFC 8878) of one or more frames."""

    def __init__(self, stored: BinaryIO, size: int) -> None:
        super().__init__(stored)
        self._size = size
        self._stream = pyarrow.CompressedInputStream(stored, "zstd")

    def _next(self, size: int) -> bytes:
        before = self._stored.tell()
        try:
            return self._stream.read(min(size, _MOST))
        except OSError as error:
            if error.errno is not None:
                raise
            # Arrow reports damage without an error number.
            ends_early = self._stored.tell() >= self._size
            raise DamageError(f"zstd, {error}", before, ends_early=ends_early) from error


def unpacker(packing: str | None, stored: BinaryIO, size: int) -> Unpacked | None:
    """Opens the content of a packed file; returns None for a file that is not.

    Args:
        packing: gz, zst or None.
        stored: the file's bytes.
        size: number of them.
    """
    if packing == "gz":
        return Gunzipped(stored)
    return Unzstd(stored, size) if packing == "zst" else None


def unpacked(packing: str | None, stored: BinaryIO, size: int) -> BinaryIO:
    """Opens the content of a file, packed or not, for buffered reading, which raises a `DamageError`."""
    raw = unpacker(packing, stored, size)
    return stored if raw is None else cast(BinaryIO, io.BufferedReader(raw, BUFFER))
