"""Stop words by language, for Gopher's rule that a document has at least two of eight (Rae et al. 2021, A1.1).

The English list is the published one. The others are not published: each has eight of its language's most frequent
function words, as FineWeb-2 derives its lists (Penedo et al. 2025, arXiv:2506.20920). Korean and Finnish, which attach
such words to others, and scripts without spaces have none, so the rule does not judge them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.corpus.clean.words import is_latin

# The words of each language, by its ISO 639-1 code.
STOP_WORDS = {
    language: tuple(listed.split())
    for language, listed in {
        "en": "the be to of and that have with",
        "ar": "في من على أن إلى عن التي هذا",
        "bg": "и на да се за от не по",
        "bn": "এই ও করে থেকে না জন্য এবং হয়",
        "ca": "de la i el que a en per",
        "cs": "a se v na je že s z",
        "da": "og i at det er en til på",
        "de": "der die und das in nicht mit zu",
        "el": "και το να του η την της με",
        "es": "de la que el y en los por",
        "fa": "و در به از که را این با",
        "fr": "de la et le les des est que",
        "he": "של את על לא זה הוא עם כי",
        "hi": "के में है की और से को का",
        "hr": "i je u na se da za su",
        "hu": "a az és hogy nem is egy meg",
        "id": "yang dan di itu dengan untuk dari ini",
        "it": "di e la che il per un non",
        "nl": "de het een en van in dat is",
        "no": "og i det er på en til som",
        "pl": "i w na się z nie że do",
        "pt": "de a que o e do da em",
        "ro": "de și în la cu că pe nu",
        "ru": "и в на не что с по как",
        "sk": "a sa v na je že s z",
        "sr": "и је у на се да за су",
        "sv": "och i att det som en på är",
        "tr": "ve bir bu için çok da de ile",
        "uk": "і в на не що з у до",
        "ur": "کے میں کی ہے اور سے کو کا",
        "vi": "và của là có cho được không trong",
    }.items()
}
_LANGUAGES = tuple(STOP_WORDS)
_WORDS = tuple(dict.fromkeys(word for listed in STOP_WORDS.values() for word in listed))
_NUMBERS = {word: number for number, word in enumerate(_WORDS)}
_PUNCTUATION = ".,;:!?\"'“”‘’()[]…«»„،؛؟।"


def number_of(word: str) -> int:
    """Returns the number of a stop word of any language, without case and punctuation; -1 for any other word."""
    return _NUMBERS.get(word.strip(_PUNCTUATION).lower(), -1)


def count(
    numbers: NDArray[np.int64], documents: NDArray[np.int64], texts: Sequence[str], languages: Sequence[str] | None
) -> NDArray[np.float64]:
    """Counts the different stop words of its language in every text.

    Args:
        numbers: the words of all texts as numbers by `number_of`, (n,).
        documents: text of every word, (n,).
        texts: the texts.
        languages: ISO 639-1 codes; None if they are not identified. A text in Latin letters then counts as of the
            language of which it has the most stop words.

    Returns:
        (texts,); NaN where the language has no list, or is not known.
    """
    seen = np.zeros((len(texts), len(_WORDS)))
    seen[documents[numbers >= 0], numbers[numbers >= 0]] = 1
    member = np.array([[word in listed for listed in STOP_WORDS.values()] for word in _WORDS], dtype=np.float64)
    counts = seen @ member
    if languages is None:
        best = counts.max(axis=1)
        return np.where([text.isascii() or is_latin(text) for text in texts], best, np.nan)
    places = np.array([_LANGUAGES.index(code) if code in STOP_WORDS else -1 for code in languages], dtype=np.int64)
    return np.where(places >= 0, counts[np.arange(len(texts)), places], np.nan)
