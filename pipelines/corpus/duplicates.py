"""Finds documents that say the same: exactly, by their hash, and nearly, by MinHash.

Signatures of word 5-grams (Broder 1997), candidates by locality-sensitive hashing in bands, each candidate pair checked
against the whole signature, groups by connected components. Only signatures are compared, never texts.
"""

import re

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

PERMUTATIONS = 128
SIGNATURE_BYTES = 4 * PERMUTATIONS
WORDS_IN_A_SHINGLE = 5
# Part of what a signature is: another seed or algorithm makes signatures that cannot be compared.
SIGNATURE_SEED = 1
SIGNATURE_ALGORITHM = f"rensa.RMinHash {RMinHash.ALGORITHM_VERSION}"
# Share of pairs exactly at the similarity asked for that must meet in a band.
_BAND_RECALL = 0.98
_PAIRS_AT_ONCE = 100_000
_WORD = re.compile(r"\w+")


def shingles(text: str) -> list[str]:
    """The 5-grams of a text's words, without case and punctuation; all words as one if there are fewer."""
    words = _WORD.findall(text.lower())
    last = max(len(words) - WORDS_IN_A_SHINGLE, 0)
    return [" ".join(words[start : start + WORDS_IN_A_SHINGLE]) for start in range(last + 1)]


def signatures(texts: list[str]) -> NDArray[np.uint32]:
    """MinHash signatures, (texts, 128): two agree in a share of places that estimates the Jaccard similarity."""
    rows = RMinHash.digest_matrix_from_token_sets([shingles(text) for text in texts], PERMUTATIONS, SIGNATURE_SEED)
    return np.array(rows.to_rows(), dtype=np.uint32).reshape(len(texts), PERMUTATIONS)


def exact_duplicates(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Marks every row of a (n, 2) array of 128-bit hashes that equals an earlier one."""
    _, first = np.unique(digests, axis=0, return_index=True)
    repeated = np.ones(len(digests), dtype=bool)
    repeated[first] = False
    return repeated


def near_duplicates(
    signed: NDArray[np.uint32], lengths: NDArray[np.int64], similarity: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Groups documents that are alike and marks all but one of each group: the longest stays, of equals the earliest.

    Args:
        signed: signatures, (n, 128).
        lengths: (n,).
        similarity: least estimated Jaccard similarity of two documents that count as the same.

    Returns:
        (marked, survivor of every document's group), both (n,).
    """
    count = len(signed)
    pairs = _similar_pairs(signed, similarity)
    graph = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    order = np.lexsort((np.arange(count), -lengths, group))
    first_of_group = np.ones(count, dtype=bool)
    first_of_group[1:] = group[order][1:] != group[order][:-1]
    survivors = order[first_of_group]
    marked = np.ones(count, dtype=bool)
    marked[survivors] = False
    return marked, survivors[group]


def rows_in_a_band(similarity: float) -> int:
    """The most rows a band, hence the fewest false candidates, with which pairs at `similarity` still meet."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows) >= _BAND_RECALL:
            return rows
    return 1


def _similar_pairs(signed: NDArray[np.uint32], similarity: float) -> NDArray[np.int64]:
    rows = rows_in_a_band(similarity)
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        candidates = _band_pairs(signed[:, start : start + rows])
        for offset in range(0, len(candidates), _PAIRS_AT_ONCE):
            pairs = candidates[offset : offset + _PAIRS_AT_ONCE]
            agreement = (signed[pairs[:, 0]] == signed[pairs[:, 1]]).mean(axis=1)
            found.append(pairs[agreement >= similarity])
    return np.concatenate(found)


def _band_pairs(band: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Pairs that agree in a band: each document with the one before and the first of its bucket, not all with all."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        # FNV-1a over whole words: a false meeting costs one comparison.
        keys = (keys ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    position = np.arange(1, len(order))
    bucket = np.maximum.accumulate(np.concatenate(([0], np.where(same, 0, position)))) if len(order) else position
    later = position[same]
    before = np.stack([order[later - 1], order[later]], axis=1)
    first = np.stack([order[bucket[later]], order[later]], axis=1)
    return np.concatenate([before, first[bucket[later] != later - 1]])
