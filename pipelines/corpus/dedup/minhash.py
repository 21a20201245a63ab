"""Signs documents with MinHash of word 5-grams (Broder 1997) and cuts signatures into LSH bands.

Documents whose signatures agree in all rows of a band are candidates; each candidate pair is then compared by its whole
signatures. Texts are never compared.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from pipelines.corpus.clean.words import folded
from pipelines.corpus.clean.words import words as split_words

PERMUTATIONS = 112
WORDS_IN_A_SHINGLE = 5
# Signatures of another seed or algorithm cannot be compared.
SIGNATURE_SEED = 1
SIGNATURE_ALGORITHM = f"rensa.RMinHash {RMinHash.ALGORITHM_VERSION}, words 3"
# Share of the pairs exactly at the similarity threshold that become candidates: at 0.8 that gives FineWeb's 14 bands of
# 8 rows (Penedo et al. 2024, https://arxiv.org/abs/2406.17557), which find pairs at 0.8 with 0.924, at 0.85 with 0.988.
_BAND_RECALL = 0.92
# The estimate of a similarity has a standard error: a margin of two loses 2 % of the pairs exactly at the threshold.
_STANDARD_ERRORS = 2
# Maps ASCII bytes of words to lower case, and all others to a space.
_IN_A_WORD = bytes(ord(chr(code).lower()) if split_words(chr(code)) else 32 for code in range(128)) + bytes(128)


def shingles(text: str) -> list[bytes]:
    """Lists the 5-grams of a text's words in UTF-8, without case and punctuation.

    A letter is a word in scripts without spaces, which makes them character 5-grams. A text of fewer words is a single
    shingle.
    """
    if text.isascii():  # 30,000 documents of 4 KB a second; with the expression 10,000
        words = text.encode().translate(_IN_A_WORD).split()
    else:
        words = " ".join(split_words(folded(text))).encode().split()
    if not words:
        # A text of symbols: its characters stand for words, since equal shingles would make all of them duplicates.
        words = [character.encode() for character in text if not character.isspace()]
    if len(words) < WORDS_IN_A_SHINGLE:
        return [b" ".join(words)]
    return list(map(b" ".join, zip(*(words[start:] for start in range(WORDS_IN_A_SHINGLE)), strict=False)))


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Computes MinHash signatures, (texts, 112). The share of equal places estimates the Jaccard similarity."""
    rows = RMinHash.digest_matrix_from_token_byte_sets(map(shingles, texts), PERMUTATIONS, SIGNATURE_SEED)
    return np.array(rows.to_rows(), dtype=np.uint32).reshape(len(texts), PERMUTATIONS)


def rows_in_a_band(similarity: float) -> int:
    """Chooses the most rows per band, hence the fewest false candidates, that keep the recall at `similarity`."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows) >= _BAND_RECALL:
            return rows
    return 1


def least_agreement(similarity: float) -> float:
    """Computes the least share of equal places of a near-duplicate's signature: 0.724 for a similarity of 0.8."""
    return similarity - _STANDARD_ERRORS * float(np.sqrt(similarity * (1 - similarity) / PERMUTATIONS))


def band_keys(signed: NDArray[np.uint32], rows: int) -> NDArray[np.uint64]:
    """Hashes each band of signatures to a key, evenly distributed over 64 bits.

    Args:
        signed: signatures, (n, 112).
        rows: the number of rows of a band.

    Returns:
        (bands, n).
    """
    bands = PERMUTATIONS // rows
    keys = np.zeros((bands, len(signed)), dtype=np.uint64)
    for row in range(rows):
        # FNV-1a over whole words: a collision costs one comparison.
        keys = (keys ^ signed[:, row : bands * rows : rows].T.astype(np.uint64)) * np.uint64(0x100000001B3)
    return (keys ^ (keys >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
