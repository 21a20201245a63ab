"""Cuts text into sentences, by the marks that end them in many scripts."""

import re

SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*(?=\s|$)|[。！？｡؟۔।॥።။။]+""")


def sentences(text: str) -> list[str]:
    """Cuts a text into its sentences with the white space around them; joined, they are the text.

    A line's end ends a sentence too, so that a line without any mark is one.
    """
    found: list[str] = []
    for line in text.splitlines(keepends=True):
        ends = [match.end() for match in SENTENCE_END.finditer(line)]
        for start, end in zip([0, *ends], [*ends, len(line)], strict=True):
            piece = line[start:end]
            if piece.strip() or not found:
                found.append(piece)
            else:
                found[-1] += piece
    return found
