"""Defines what reading yields: documents, and bad records in place of those that cannot be read."""

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
        text: as read, before cleaning.
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
    """

    file: str
    offset: int
    reason: str
    excerpt: str = ""


def excerpt(data: bytes) -> str:
    """Decodes the beginning of a broken record."""
    return data[:_EXCERPT_BYTES].decode("utf-8", "backslashreplace")
