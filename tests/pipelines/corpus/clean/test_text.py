"""Cleaning, and each rule that holds by default at both sides of its threshold."""

import pytest

from pipelines.corpus.clean.text import clean
from pipelines.corpus.filter.rules import (
    LETTERS,
    REPEATED_LINES,
    SYMBOLS,
    TOO_FEW_WORDS,
    WORD_LENGTH,
    bounds,
    reasons_to_drop,
)
from pipelines.corpus.filter.signals import measure


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("cafe\u0301", "café"),
        ("The cafÃ© â€œopensâ€\x9d", "The café “opens”"),
        ("Ça va, le café est là", "Ça va, le café est là"),
        ("a\x00b\x07c\ufeff\u200b\u00add", "abcd"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("a  \t b\u00a0c   \n\n\n\n  d ", "a b c\n\n  d"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("half \ud83d of an emoji", "half \ufffd of an emoji"),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467", "family \U0001f468\u200d\U0001f469\u200d\U0001f467"),
        (" \n\t ", ""),
        # UTF-8 read as Windows-1251, Windows-1253, Mac Roman and code page 437.
        ("РџСЂРёРІРµС‚, РјРёСЂ!", "Привет, мир!"),
        ("ΞΞ»Ξ»Ξ¬Ξ΄Ξ±", "Ξλλάδα"),
        ("Caf√© ‚Äúopen‚Äù", "Café “open”"),
        ("caf├⌐", "café"),
        ("СССР» и «Россия»… √2 ≈ 1,41", "СССР» и «Россия»… √2 ≈ 1,41"),
        # Overrides and isolates of direction, which hide what is read; marks of direction stay.
        ("a\u202eb\u202cc \u2067d\u2069", "abc d"),
        ("\u05d0\u200f (1)", "\u05d0\u200f (1)"),
        # Letters as tags are invisible; the flag of Wales is made of them.
        ("x\U000e0068\U000e0069y\U000e0001", "xy"),
        (
            "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
            "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
        ),
        # A zero-width space parts words in Khmer and Thai, and nothing in other scripts.
        ("ខ្មែរ\u200b\u200bស្រី\u200b", "ខ្មែរ\u200bស្រី"),
        ("a\u200bb ไทย\u200bกลาง", "ab ไทย\u200bกลาง"),
    ],
)
def test_clean(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected
    assert clean(expected) == expected


def words(count: int, letter: str = "a", length: int = 4) -> list[str]:
    return [letter * length] * count


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("five words are just enough", None),
        ("four words are not", TOO_FEW_WORDS),
        # Mean word length: 15 letters in 5 words is 3.0, 14 is 2.8; 50 is 10.0, 51 is 10.2.
        ("aaa aaa aaa aaa aaa", None),
        ("aaa aaa aaa aaa aa", WORD_LENGTH),
        (" ".join(words(5, length=10)), None),
        (" ".join([*words(4, length=10), "a" * 11]), WORD_LENGTH),
        # Symbols: one in ten words is 0.1, two are 0.2, and so for hashes as for ellipses of either spelling.
        (" ".join([*words(9), "#aaa"]), None),
        (" ".join([*words(8), "#aaa", "#aaa"]), SYMBOLS),
        (" ".join([*words(9), "aaa..."]), None),
        (" ".join([*words(8), "aaa...", "aaa…"]), SYMBOLS),
        # Letters: 8 of 10 words is 0.8, 7 is 0.7.
        (" ".join([*words(8), "1999", "2001"]), None),
        (" ".join([*words(7), "1999", "2001", "2003"]), LETTERS),
        # Lines: 3 of 10 that repeat an earlier one is 0.3, 4 is 0.4; blank lines do not count.
        ("\n\n".join([f"line {word} here" for word in "abcdefg"] + ["line a here"] * 3), None),
        ("\n\n".join([f"line {word} here" for word in "abcdef"] + ["line a here"] * 4), REPEATED_LINES),
    ],
)
def test_rules_at_both_sides_of_their_thresholds(text: str, reason: str | None) -> None:
    _, signals = measure(["another document before it", text], None)
    assert reasons_to_drop(signals, bounds(None, min_words=5))[1] == reason
