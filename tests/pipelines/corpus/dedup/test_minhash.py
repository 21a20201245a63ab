"""Signatures, the pairs that meet in a band, and the clusters that pairs make."""

import random

import numpy as np
import pytest

from pipelines.corpus.dedup.cluster import (
    candidate_pairs,
    component_pairs,
)
from pipelines.corpus.dedup.minhash import (
    PERMUTATIONS,
    band_keys,
    least_agreement,
    rows_in_a_band,
    shingles,
    signatures,
)
from tests.pipelines.corpus.dedup.random_texts import jaccard, random_text


def test_shingles_are_word_5_grams_without_case_and_punctuation() -> None:
    assert shingles("One, two THREE four five: six!") == [b"one two three four five", b"two three four five six"]
    assert shingles("Just three words") == [b"just three words"]
    assert shingles("Ça va_bien: 3 ÉTÉS\u00a0là-bas") == [
        "ça va_bien 3 étés là".encode(),
        "va_bien 3 étés là bas".encode(),
    ]
    assert shingles(" ?! ") == [b"? !"]
    assert shingles(" ") == [b""]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    rng = random.Random(5)
    base = random_text(rng, 400)
    for changed in (20, 100, 200):
        one, other = " ".join(base), " ".join(base[:-changed] + random_text(rng, changed))
        left, right = signatures([one, other])
        # Standard error of 112 places is at most 0.048; four of them.
        assert (left == right).mean() == pytest.approx(jaccard(one, other), abs=0.19)


def test_pairs_at_the_threshold_meet_in_a_band() -> None:
    for similarity in (0.5, 0.8, 0.95):
        rows = rows_in_a_band(similarity)
        recall = 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows)
        more = 1 - (1 - similarity ** (rows + 1)) ** (PERMUTATIONS // (rows + 1))
        assert recall >= 0.92 > more


def test_the_default_is_fineweb() -> None:
    rows = rows_in_a_band(0.8)
    assert (PERMUTATIONS // rows, rows) == (14, 8)
    assert least_agreement(0.8) == pytest.approx(0.8 - 2 * (0.16 / 112) ** 0.5)


def test_documents_meet_in_the_bands_whose_rows_agree() -> None:
    signed = np.arange(2 * PERMUTATIONS, dtype=np.uint32).reshape(2, PERMUTATIONS)
    signed[1, 8:24] = signed[0, 8:24]
    signed[1, 31:40] = signed[0, 31:40]
    keys = band_keys(signed, 8)
    assert keys.shape == (14, 2)
    assert np.flatnonzero(keys[:, 0] == keys[:, 1]).tolist() == [1, 2, 4]


def test_a_bucket_makes_two_pairs_a_document_however_large() -> None:
    keys = np.array([7, 5, 7, 7, 5, 7], dtype=np.uint64)
    pairs = candidate_pairs(keys, np.arange(10, 16))
    assert sorted(map(tuple, pairs.tolist())) == [(10, 12), (10, 13), (10, 15), (11, 14), (12, 13), (13, 15)]
    shared = np.zeros(500_000, dtype=np.uint64)
    assert len(candidate_pairs(shared, np.arange(len(shared)))) == 2 * len(shared) - 3


def test_component_pairs_join_the_connected_components() -> None:
    pairs = np.array([[2, 5], [8, 9], [1, 5], [9, 11], [2, 1], [40, 41]])
    assert component_pairs(pairs).tolist() == [[1, 2], [1, 5], [8, 9], [8, 11], [40, 41]]
    assert component_pairs(np.empty((0, 2), dtype=np.int64)).shape == (0, 2)
