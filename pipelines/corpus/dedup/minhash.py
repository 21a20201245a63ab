"""What documents are compared by, and how: MinHash signatures of word 5-grams (Broder 1997), cut into bands.

Candidates meet in a band, are linked to two others of their bucket at most, and each pair is checked against the whole
signature. Groups are connected components. Only numbers are compared, never texts.
"""

import re

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

PERMUTATIONS = 112
SIGNATURE_BYTES = 4 * PERMUTATIONS
WORDS_IN_A_SHINGLE = 5
# Part of what a signature is: another seed or algorithm makes signatures that cannot be compared.
SIGNATURE_SEED = 1
SIGNATURE_ALGORITHM = f"rensa.RMinHash {RMinHash.ALGORITHM_VERSION}"
# Share of pairs exactly at the similarity asked for that must meet: at 0.8 that makes FineWeb's 14 bands of 8 rows
# (Penedo et al. 2024, https://arxiv.org/abs/2406.17557), in which pairs at 0.8 meet with 0.924, at 0.85 with 0.988.
_BAND_RECALL = 0.92
# An estimate errs by its standard error: two of them below the similarity lose 2 % of the pairs exactly at it.
_STANDARD_ERRORS = 2
_WORD = re.compile(r"\w+")
# Every ASCII byte of a word in lower case, and a space for all others.
_IN_A_WORD = bytes(ord(chr(code).lower()) if _WORD.match(chr(code)) else 32 for code in range(128)) + bytes(128)


def shingles(text: str) -> list[bytes]:
    """The 5-grams of a text's words, without case and punctuation; all words as one if there are fewer. In UTF-8."""
    if text.isascii():  # 30,000 documents of 4 KB a second, the expression 10,000
        words = text.encode().translate(_IN_A_WORD).split()
    else:
        words = " ".join(_WORD.findall(text.lower())).encode().split()
    if len(words) < WORDS_IN_A_SHINGLE:
        return [b" ".join(words)]
    return list(map(b" ".join, zip(*(words[start:] for start in range(WORDS_IN_A_SHINGLE)), strict=False)))


def signatures(texts: list[str]) -> NDArray[np.uint32]:
    """MinHash signatures, (texts, 112): two agree in a share of places that estimates the Jaccard similarity."""
    rows = RMinHash.digest_matrix_from_token_byte_sets(map(shingles, texts), PERMUTATIONS, SIGNATURE_SEED)
    return np.array(rows.to_rows(), dtype=np.uint32).reshape(len(texts), PERMUTATIONS)


def rows_in_a_band(similarity: float) -> int:
    """The most rows a band, hence the fewest false candidates, with which pairs at `similarity` still meet."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows) >= _BAND_RECALL:
            return rows
    return 1


def least_agreement(similarity: float) -> float:
    """The share of places in which two signatures must agree: 0.724 for a similarity of 0.8."""
    return similarity - _STANDARD_ERRORS * float(np.sqrt(similarity * (1 - similarity) / PERMUTATIONS))


def band_keys(signed: NDArray[np.uint32], rows: int) -> NDArray[np.uint64]:
    """One number a band and signature, (bands, n), evenly spread over 64 bits."""
    bands = PERMUTATIONS // rows
    keys = np.zeros((bands, len(signed)), dtype=np.uint64)
    for row in range(rows):
        # FNV-1a over whole words: a false meeting costs one comparison.
        keys = (keys ^ signed[:, row : bands * rows : rows].T.astype(np.uint64)) * np.uint64(0x100000001B3)
    return (keys ^ (keys >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)


def bucket_pairs(keys: NDArray[np.uint64], documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (earlier, later) of documents with one key: each with the one before and the first, not all with all.

    So a key that half of the corpus shares makes two pairs a document, and memory grows with the documents alone.

    Args:
        keys: (n,).
        documents: (n,), ascending within equal keys.
    """
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    position = np.arange(1, len(order))
    bucket = np.maximum.accumulate(np.concatenate(([0], np.where(same, 0, position)))) if len(order) else position
    later = position[same]
    ordered = documents[order]
    before = np.stack([ordered[later - 1], ordered[later]], axis=1)
    first = np.stack([ordered[bucket[later]], ordered[later]], axis=1)
    return np.concatenate([before, first[bucket[later] != later - 1]])


def stars(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (first, other) of every connected component's first document and each other one: at most one a document."""
    documents, place = np.unique(pairs, return_inverse=True)
    ends = place.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(len(documents),) * 2)
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    linked = np.stack([documents[first[group]], documents], axis=1)
    return linked[linked[:, 0] != linked[:, 1]]
