"""Scores the quality of documents with a linear classifier of hashed n-grams that the recipe's own examples train.

Features are the presence of a document's words and pairs of words, hashed to 2^18 places (Weinberger et al. 2009,
arXiv:0902.2206), scaled to length 1. The model is logistic regression with an L2 penalty, its classes weighted as if of
equal size. DCLM (Li et al. 2024, arXiv:2406.11794) chose such a classifier, fastText's, over all other filters tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from cluster.run.atomic import atomic_write
from pipelines.corpus.clean.words import folded, words

# Part of the key of cached scores: those of another version are computed again.
VERSION = 1
PLACES = 1 << 18
PENALTY = 1e-4
# The classifier reads so many characters of a document: the beginning is enough, and time grows with length.
_CHARACTERS = 20_000
_PAIR = np.uint64(0x9E3779B97F4A7C15)
# Share of the examples that the classifier is not trained on, to measure it.
HELD_OUT = 0.2


@dataclass(frozen=True)
class Classifier:
    """Weights of the features, (2^18,) float32, and the bias."""

    weights: NDArray[np.float32]
    bias: float

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Computes the probability that each text is of the positive kind, (texts,)."""
        scores: NDArray[np.float64] = expit(features(texts) @ self.weights + self.bias)
        return scores

    def save(self, path: Path) -> None:
        """Writes an .npz file atomically."""
        with atomic_write(path) as side, side.open("wb") as file:
            np.savez(file, weights=self.weights, bias=np.float64(self.bias))


@lru_cache(maxsize=2)
def load(path: Path, fingerprint: str) -> Classifier:
    """Reads what `save` wrote. The fingerprint of the file tells it from another one at the same path."""
    del fingerprint
    with np.load(path, allow_pickle=False) as held:
        return Classifier(held["weights"], float(held["bias"]))


def features(texts: Sequence[str]) -> csr_matrix:
    """Hashes the words and pairs of words of every text, (texts, 2^18); rows have length 1, or 0 without words."""
    rows, places = [], []
    numbers: dict[str, int] = {}
    for row, text in enumerate(texts):
        found = words(folded(text[:_CHARACTERS]))
        hashes = np.fromiter((_hash(numbers, word) for word in found), dtype=np.uint64, count=len(found))
        pairs = (hashes[:-1] * _PAIR) ^ hashes[1:]
        unique = np.unique(np.concatenate([hashes, pairs]) % np.uint64(PLACES))
        places.append(unique.astype(np.int64))
        rows.append(np.full(len(unique), row))
    row_of, place_of = np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([np.empty(0, np.int64), *places])
    sizes = np.bincount(row_of, minlength=len(texts))
    return csr_matrix((1 / np.sqrt(sizes[row_of]), (row_of, place_of)), shape=(len(texts), PLACES))


def train(good: Sequence[str], bad: Sequence[str], seed: int) -> tuple[Classifier, dict[str, float]]:
    """Trains a classifier of good and bad texts.

    Returns:
        (classifier, report): the report has the examples of each kind, and the area under the ROC curve and the
            accuracy, averaged over both kinds, on the fifth of the examples that training does not see.
    """
    examples, labels = features([*good, *bad]), np.repeat([1.0, 0.0], [len(good), len(bad)])
    held_out = np.random.default_rng(seed).random(len(labels)) < HELD_OUT
    classifier = _fit(examples[~held_out], labels[~held_out])
    scores = expit(examples[held_out] @ classifier.weights + classifier.bias)
    own = labels[held_out] == 1
    first, second = scores[own], scores[~own]
    accuracy = ((first >= 0.5).mean() + (second < 0.5).mean()) / 2
    figures = {"auc": round(area_under_curve(first, second), 4), "accuracy": round(float(accuracy), 4)}
    return classifier, {"good": len(good), "bad": len(bad), **figures}


def area_under_curve(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Computes the area under the ROC curve: the share of pairs whose good one scores higher, ties half."""
    ordered = np.sort(bad)
    below, at_most = (np.searchsorted(ordered, good, side=side).sum() for side in ("left", "right"))
    return float((below + at_most) / 2 / (len(good) * len(bad)))


def _fit(examples: csr_matrix, labels: NDArray[np.float64]) -> Classifier:
    # The penalty would keep the weights of features that no example has at 0: they are left out.
    used = np.unique(examples.indices)
    start = np.zeros(len(used) + 1)
    found = minimize(objective(examples[:, used], labels), start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    weights = np.zeros(PLACES, dtype=np.float32)
    weights[used] = found.x[:-1]
    return Classifier(weights, float(found.x[-1]))


def objective(
    examples: csr_matrix, labels: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
    """Returns the loss and gradient as a function of the weights and, last, the bias, (features + 1,)."""
    share = labels.mean()
    weight = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) / len(labels)

    def loss(given: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = examples @ given[:-1] + given[-1]
        # log(1 + exp(-z)) of the right class, without overflow.
        losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
        slopes = weight * (expit(logits) - labels)
        gradient = np.append(examples.T @ slopes + PENALTY * given[:-1], slopes.sum())
        return float(weight @ losses + PENALTY / 2 * given[:-1] @ given[:-1]), gradient

    return loss


def _hash(numbers: dict[str, int], word: str) -> int:
    found = numbers.get(word)
    if found is None:
        found = numbers[word] = xxhash.xxh3_64_intdigest(word.encode())
    return found
