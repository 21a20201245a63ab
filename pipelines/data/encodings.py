"""Guesses the encoding of text that is not UTF-8, for the advice in messages."""

import codecs

_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The bytes that are looked at. In UTF-16 half of them are zero in the languages with Latin letters; a text in UTF-8 may
# hold single ones.
LOOKED_AT = 64
_ZERO_SHARE = 0.25


def is_wide(data: bytes) -> bool:
    """Tells whether a text begins as in UTF-16 or UTF-32: with their mark, or with many zero bytes."""
    start = data[:LOOKED_AT]
    return data.startswith((*_UTF_32, *_UTF_16)) or (len(start) > 1 and start.count(0) >= _ZERO_SHARE * len(start))


def likely_encoding(data: bytes) -> str:
    """Names the encoding that bytes which are not UTF-8 are most likely in: cp1252 is the one of Western spreadsheets.

    Args:
        data: the beginning of a file, or a line of it.
    """
    if data.startswith(_UTF_32):
        return "utf-32"
    return "utf-16" if is_wide(data) else "cp1252"


def encoding_advice(encoding: str) -> str:
    """Says what to set for text of a corpus source that is not in its encoding, to follow a complaint."""
    return f"set encoding of this source, such as {'cp1252' if encoding == 'utf-8' else 'utf-8'}"


def conversion(data: bytes) -> str:
    """Says how to convert a file whose bytes are not UTF-8, to follow a complaint."""
    likely = likely_encoding(data)
    such = f"it is in {likely.upper()}" if is_wide(data) else f"it may be in another encoding, such as {likely}"
    return f"{such}: convert it to UTF-8, for example by `iconv -f {likely} -t utf-8`"
