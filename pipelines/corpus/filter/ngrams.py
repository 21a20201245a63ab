"""Measures the share of each document that consists of repeated n-grams (Rae et al. 2021, table A1), in batches.

Numerators and denominators count characters of words, without the spaces. Only n-grams that occur more than once
count. A character inside several repeated n-grams counts once.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

TOP = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)


def repetition(
    words: NDArray[np.int64], lengths: NDArray[np.int64], documents: NDArray[np.int64], count: int
) -> dict[str, NDArray[np.float64]]:
    """Measures the shares of each document's characters in its most frequent and in all repeated n-grams.

    An n-gram can repeat only where both (n-1)-grams in it do, so each length examines the few places that the length
    before left.

    Args:
        words: ids of the words of all documents in order, equal for equal words, from 0 up; (n,).
        lengths: characters of every word, (n,).
        documents: document of every word, 0 to count - 1, ascending, (n,).
        count: number of documents.

    Returns:
        top_2_gram to top_4_gram: occurrences × characters of the most frequent n-gram, the longest of several;
        duplicate_5_gram to duplicate_10_gram: characters in n-grams that occur more than once. Each (count,).
    """
    total = np.bincount(documents, lengths, count).astype(np.float64)
    reach = np.concatenate(([0], np.cumsum(lengths)))
    vocabulary = int(words.max()) + 1 if len(words) else 1
    codes = documents * vocabulary + words
    starts = np.arange(len(words))
    found: dict[str, NDArray[np.float64]] = {}
    for n in range(2, DUPLICATE[-1] + 1):
        starts = starts[starts + n <= len(words)]
        starts = starts[documents[starts] == documents[starts + n - 1]]
        starts, times = _repeated(codes, starts, words[starts + n - 1], vocabulary)
        if n in TOP:
            characters = _most_frequent(starts, times, reach[starts + n] - reach[starts], documents, count)
            found[f"top_{n}_gram"] = shares(characters, total)
        elif n in DUPLICATE:
            found[f"duplicate_{n}_gram"] = shares(_covered(starts, n, lengths, documents, count), total)
        # A longer n-gram can repeat only where this length repeats both here and one word further.
        starts = starts[:-1][np.diff(starts) == 1]
    return found


def _repeated(
    codes: NDArray[np.int64], starts: NDArray[np.int64], last: NDArray[np.int64], vocabulary: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds the starts of n-grams that occur more than once, and how often they do.

    Writes an id of each n-gram to `codes`, from which the next length builds its own.
    """
    keys = pa.array(codes[starts] * vocabulary + last).dictionary_encode().indices.to_numpy()
    times = np.bincount(keys)[keys] if len(keys) else keys
    codes[starts] = keys
    again = times > 1
    return starts[again], times[again]


def _most_frequent(
    starts: NDArray[np.int64],
    times: NDArray[np.int64],
    characters: NDArray[np.int64],
    documents: NDArray[np.int64],
    count: int,
) -> NDArray[np.float64]:
    best = np.zeros(count)
    if len(starts):
        document = documents[starts]
        first = np.flatnonzero(np.diff(document, prepend=-1))
        longest = int(characters.max()) + 1
        most = np.maximum.reduceat(times * longest + characters, first)
        best[document[first]] = (most // longest) * (most % longest)
    return best


def _covered(
    starts: NDArray[np.int64], n: int, lengths: NDArray[np.int64], documents: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    if not len(starts):
        return np.zeros(count)
    change = np.zeros(len(lengths) + 1, dtype=np.int32)
    change[starts] += 1
    change[starts + n] -= 1
    return np.bincount(documents, lengths * (np.cumsum(change[:-1]) > 0), count).astype(np.float64)


def shares(part: NDArray, total: NDArray) -> NDArray[np.float64]:
    """Divides elementwise; 0 where the total is 0."""
    return np.divide(part, total, out=np.zeros(len(total)), where=total > 0)
