"""Identifies the language of texts among 97, with langid.py's model (Lui and Baldwin 2012) as shipped by py3langid."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier

# Time grows with length, certainty hardly does. The beginning is used since it is running text: lists of names and
# indexes come later.
_CHARACTERS = 2000


def identify(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Identifies the most likely language of every text from its beginning.

    Returns:
        (codes, probabilities): ISO 639-1 codes, and the probability of each, (texts,).
    """
    found = [_identifier().classify(text[:_CHARACTERS]) for text in texts]
    return [code for code, _ in found], np.array([probability for _, probability in found], dtype=np.float64)


def known_languages() -> list[str]:
    """Lists the ISO 639-1 codes of all languages that the model tells apart."""
    return sorted(_identifier().labels)


@cache
def _identifier() -> LanguageIdentifier:
    # Loading takes 0.1 s, once per process.
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
