"""Records that cannot be read: said where they are and set aside, so that one broken line does not stop a corpus."""

from dataclasses import dataclass

# Above every page and nearly every book, and little enough to hold a few of in memory.
MAXIMUM_RECORD_BYTES = 32 << 20
_EXCERPT_BYTES = 200


@dataclass(frozen=True)
class BadRecord:
    """One record that cannot be read.

    Attributes:
        file: where it is.
        offset: its first byte, in what a .gz or .zst of lines holds, in the file itself if that is anything else.
        reason: a sentence that names file and place, what is wrong and what to do.
        excerpt: how it begins; bytes that are no UTF-8 are written as escapes.
    """

    file: str
    offset: int
    reason: str
    excerpt: str = ""


def excerpt(data: bytes) -> str:
    """The start of a broken record as text."""
    return data[:_EXCERPT_BYTES].decode("utf-8", "backslashreplace")
