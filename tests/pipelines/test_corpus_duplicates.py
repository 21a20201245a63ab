"""Exact and near-duplicates on planted sets, and on two editions of real books."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus.clean import clean
from pipelines.corpus.duplicates import (
    PERMUTATIONS,
    exact_duplicates,
    near_duplicates,
    rows_in_a_band,
    shingles,
    signatures,
)

GUTENBERG = Path(__file__).parents[2].parent / "shared" / "data" / "corpus" / "gutenberg"


def jaccard(one: str, other: str) -> float:
    first, second = set(shingles(one)), set(shingles(other))
    return len(first & second) / len(first | second)


def random_text(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=6)) for _ in range(count)]


def test_shingles_are_word_5_grams_without_case_and_punctuation() -> None:
    assert shingles("One, two THREE four five: six!") == ["one two three four five", "two three four five six"]
    assert shingles("Just three words") == ["just three words"]


def test_exact_duplicates_are_all_but_the_first() -> None:
    digests = np.array([[1, 2], [3, 4], [1, 2], [1, 9], [3, 4], [1, 2]], dtype=np.uint64)
    assert exact_duplicates(digests).tolist() == [False, False, True, False, True, True]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    rng = random.Random(5)
    base = random_text(rng, 400)
    for changed in (20, 100, 200):
        one, other = " ".join(base), " ".join(base[:-changed] + random_text(rng, changed))
        left, right = signatures([one, other])
        # Standard error of 128 places is at most 0.044; four of them.
        assert (left == right).mean() == pytest.approx(jaccard(one, other), abs=0.18)


def test_pairs_at_the_threshold_meet_in_a_band() -> None:
    for similarity in (0.5, 0.8, 0.95):
        rows = rows_in_a_band(similarity)
        recall = 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows)
        more = 1 - (1 - similarity ** (rows + 1)) ** (PERMUTATIONS // (rows + 1))
        assert recall >= 0.98 > more


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    rng = random.Random(7)
    originals = [random_text(rng, 200) for _ in range(200)]
    texts = [" ".join(text) for text in originals]
    # Eight new words at the end: (196 - 8) / (196 + 8) = 0.92. Sixty: (196 - 60) / (196 + 60) = 0.53.
    near = [" ".join(text[:-8] + random_text(rng, 8)) for text in originals[:50]]
    far = [" ".join(text[:-60] + random_text(rng, 60)) for text in originals[50:100]]
    assert jaccard(texts[0], near[0]) == pytest.approx(188 / 204)
    assert jaccard(texts[50], far[0]) == pytest.approx(136 / 256)
    every = texts + near + far
    marked, survivors = near_duplicates(signatures(every), np.array([len(text) for text in every]), 0.8)
    assert np.flatnonzero(marked).tolist() == list(range(200, 250))
    assert survivors[200:250].tolist() == list(range(50))


def test_the_longest_survives_then_the_earliest() -> None:
    signed = np.zeros((5, PERMUTATIONS), dtype=np.uint32)
    signed[4] = np.arange(PERMUTATIONS)
    marked, survivors = near_duplicates(signed, np.array([5, 9, 9, 7, 1]), 0.8)
    assert marked.tolist() == [True, False, True, True, False]
    assert survivors.tolist() == [1, 1, 1, 1, 4]


def test_groups_join_through_a_common_neighbour() -> None:
    signed = np.tile(np.arange(PERMUTATIONS, dtype=np.uint32), (3, 1))
    signed[1, 104:] += 1000  # agrees with the first in 104/128 = 0.81
    signed[2, 104:] += 1000
    signed[2, :24] += 2000  # with the second in 0.81, with the first in 0.62
    marked, survivors = near_duplicates(signed, np.array([3, 2, 1]), 0.8)
    assert marked.tolist() == [False, True, True]
    assert survivors.tolist() == [0, 0, 0]


def test_no_documents_have_no_duplicates() -> None:
    marked, _ = near_duplicates(np.empty((0, PERMUTATIONS), dtype=np.uint32), np.empty(0, dtype=np.int64), 0.8)
    assert len(marked) == 0


@pytest.mark.skipif(not GUTENBERG.exists(), reason="the shared books are not here")
def test_older_editions_are_near_duplicates_of_the_newer() -> None:
    files = sorted(GUTENBERG.glob("*.txt"))
    texts = [clean(file.read_text(encoding="utf-8-sig")) for file in files]
    marked, survivors = near_duplicates(signatures(texts), np.array([len(text) for text in texts]), 0.8)
    found = {files[index].stem: files[survivors[index]].stem for index in np.flatnonzero(marked)}
    assert found == {"alice-older-edition": "alice", "grimm-older-edition": "grimm"}
