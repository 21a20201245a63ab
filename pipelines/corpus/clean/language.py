"""Which language a text is in, by langid.py's model (Lui and Baldwin 2012), which the package carries: 97 languages."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier

# Time grows with length, and certainty hardly does. Running text stands at the beginning: lists of names come later.
_CHARACTERS = 2000


def identify(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """The ISO 639-1 code of every text's most likely language, and its probability, judged by its beginning."""
    found = [_identifier().classify(text[:_CHARACTERS]) for text in texts]
    return [code for code, _ in found], np.array([probability for _, probability in found], dtype=np.float64)


def known_languages() -> list[str]:
    """All codes that `identify` may give."""
    return sorted(_identifier().labels)


def wanted(languages: Sequence[str], probabilities: NDArray[np.float64], asked: Sequence[str]) -> NDArray[np.float64]:
    """The probability that each text is in a language asked for: 0 where another one is more likely."""
    return np.where(np.isin(languages, asked), probabilities, 0.0)


@cache
def _identifier() -> LanguageIdentifier:
    # 0.1 s to load, once a process.
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
