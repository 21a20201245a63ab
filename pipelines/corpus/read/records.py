"""Defines the results of reading: documents, bad records in place of those that cannot be read, and skipped records."""

from dataclasses import dataclass

# More than every page and nearly every book, and small enough to hold several in memory.
MAXIMUM_RECORD_BYTES = 32 << 20
_EXCERPT_BYTES = 200


@dataclass(frozen=True)
class Document:
    """A text with its origin.

    Attributes:
        id: "SOURCE:PLACE", the same in every run over the same input.
        source: name of the source.
        text: the text as read, before cleaning.
    """

    id: str
    source: str
    text: str


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be read. It is quarantined, so that one broken line does not stop a corpus.

    Attributes:
        file: path or URI of its file.
        offset: its first byte in the file, or in the uncompressed content of a .gz or .zst file of lines.
        reason: a sentence with file, place, complaint and remedy.
        excerpt: its beginning; bytes that are not UTF-8 are escaped.
        unread_bytes: the bytes of the stored file that were lost with this record; 0 for a single record.
        file_bytes: the size of the stored file, where `unread_bytes` is not 0.
    """

    file: str
    offset: int
    reason: str
    excerpt: str = ""
    unread_bytes: int = 0
    file_bytes: int = 0


@dataclass(frozen=True)
class Skipped:
    """Records that can be read and hold no document, such as images among web pages.

    Attributes:
        kind: what they are, such as "status 404".
        records: number of them.
    """

    kind: str
    records: int = 1


# The result of reading a record: its text, or the reason that it gives none.
Item = str | BadRecord | Skipped


class DamageError(Exception):
    """Raised where the bytes of a file are not of its format, and the rest of it may be lost.

    Storage that does not answer raises a `StorageError` instead: it says nothing about the file.

    Attributes:
        at: stored byte behind which the file cannot be read.
        ends_early: whether the file ends before its content does, so that nobody knows how much is missing.
    """

    def __init__(self, complaint: str, at: int, ends_early: bool = False) -> None:
        super().__init__(complaint)
        self.at, self.ends_early = at, ends_early


def excerpt(data: bytes) -> str:
    """Decodes the beginning of a broken record."""
    return data[:_EXCERPT_BYTES].decode("utf-8", "backslashreplace")


def unread(file: str, offset: int, where: str, error: DamageError, size: int, skipped: int | None) -> BadRecord:
    """Describes the part of a file that damage makes unreadable.

    Args:
        file: path or URI of the file.
        offset: the offset of the record where reading stopped.
        where: what is damaged, such as "after byte 5 of its content".
        error: the damage.
        size: bytes of the file.
        skipped: bytes of it after which reading went on; None if it did not. A file that ends early counts whole, since
            nobody knows how much of it is missing.
    """
    lost = size if error.ends_early else size - error.at if skipped is None else skipped
    share = "nobody knows how much is missing" if error.ends_early else f"{lost:,} of its {size:,} bytes are not read"
    reason = f"{file} is damaged {where} ({error}): {share}; fetch or write the file again"
    return BadRecord(file, offset, reason, unread_bytes=max(lost, 1), file_bytes=size)
