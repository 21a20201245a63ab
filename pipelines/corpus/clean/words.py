"""Splits texts of every script into words.

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces between words; a letter with its marks is a word there,
so that n words in a row are a character n-gram. In scripts whose vowels or accents are marks, such as Devanagari and
Arabic, a mark is part of its word.
"""

import re
import unicodedata

# Without the punctuation in the same blocks.
_UNSPACED = (
    "\u0e00-\u0e4e\u0e50-\u0e59\u0e80-\u0eff\u1000-\u1049\u104c-\u109f\u1780-\u17d3\u17d7\u17dc-\u17e9"
    "\u3040-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Combining marks, the Indic blocks without their punctuation, and the joiners of Persian and Indic scripts.
_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u0900-\u0963\u0966-\u096f\u0971-\u0dff"
    "\u0f71-\u0f84\u0f90-\u0fbc\u200c\u200d"
)
_PLAIN = re.compile(r"\w+")
_NEEDS_CARE = re.compile(f"[{_UNSPACED}{_MARKS}]")
_ANY_SCRIPT = re.compile(rf"(?=\w)[{_UNSPACED}](?:(?!\w)[{_UNSPACED}])*|(?:(?![{_UNSPACED}])[\w{_MARKS}])+")
# Vowels of Arabic and Hebrew, and the stretching of Arabic.
_POINTS = re.compile("[\u0640\u064b-\u0652\u0670\u0591-\u05bd\u05bf\u05c1\u05c2]")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_SYLLABLES = re.compile("[\u0900-\u0dff\u1200-\u139f\uac00-\ud7a3]")
_THAI_OR_LAO = re.compile("[\u0e00-\u0eff]")
# Share of a text's characters from which its words count as unspaced: quotations in other languages have less.
_MOSTLY = 0.3


def words(text: str) -> list[str]:
    """Lists the words of a text, without punctuation."""
    return _pattern(text).findall(text)


def folded(text: str) -> str:
    """Folds case, so that ß is ss and both i of Turkish are one, composes characters, and removes vowel points.

    Evaluation files and documents differ in all of these.
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFC", text.casefold()).replace("i\u0307", "i").replace("ı", "i")
    return _POINTS.sub("", text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Lists start and end of the words of a text."""
    return [match.span() for match in _pattern(text).finditer(text)]


def is_unspaced(text: str) -> bool:
    """Tests that a text is largely in scripts without spaces between words."""
    if text.isascii() or not _UNSPACED_RUN.search(text):
        return False
    return sum(map(len, _UNSPACED_RUN.findall(text))) >= _MOSTLY * len(text)


def is_syllabic(text: str) -> bool:
    """Tests that the characters at the start of a text are largely syllables or parts of them, as in Korean, Ethiopic
    and the scripts of India."""
    start = text[:1000]
    return not start.isascii() and len(_SYLLABLES.findall(start)) >= _MOSTLY * len(start)


def ends_no_sentences(text: str) -> bool:
    """Tests that an unspaced text is in a script without a mark for the end of a sentence: Thai or Lao."""
    return len(_THAI_OR_LAO.findall(text)) >= _MOSTLY * len(text)


def is_latin(text: str) -> bool:
    """Tests that at least half of the characters at the beginning of a text are ASCII, as in all languages of Europe
    that Latin letters write."""
    start = text[:2000]
    return 2 * len(start.encode("ascii", "ignore")) >= len(start)


def _pattern(text: str) -> re.Pattern[str]:
    # Three quarters of the careful expression's time would go to texts for which the plain one gives the same words.
    return _PLAIN if text.isascii() or not _NEEDS_CARE.search(text) else _ANY_SCRIPT
