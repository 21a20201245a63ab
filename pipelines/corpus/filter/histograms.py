"""Counts documents by signal in fixed bins, so that the histograms of tasks can be added up."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.corpus.filter.signals import Signals

_WORDS = (0.0, *(2.0**power for power in range(21)))
_LETTERS = tuple(float(edge) for edge in range(17))
_SHARE = tuple(edge / 20 for edge in range(21))
# Edges of the bins by signal; values beyond the last edge count in the last bin.
EDGES: dict[str, tuple[float, ...]] = {
    "words": _WORDS,
    "mean_word_length": _LETTERS,
    **dict.fromkeys(
        (
            "words_with_a_letter",
            "duplicate_lines",
            "top_2_gram",
            "duplicate_5_gram",
            "punctuated_lines",
            "short_lines",
            "language_probability",
            "quality_score",
        ),
        _SHARE,
    ),
}


def count(signals: Signals) -> dict[str, NDArray[np.int64]]:
    """Counts the documents in each bin, for every signal measured that has bins; (bins,) each."""
    return {
        name: np.histogram(np.minimum(signals[name], edges[-1]), edges)[0]
        for name, edges in EDGES.items()
        if name in signals
    }


def described(counts: Mapping[str, list[int]]) -> dict[str, dict[str, list[float]]]:
    """Joins counts with the edges of their bins, for `stats.json`."""
    return {name: {"edges": list(EDGES[name]), "counts": list(some)} for name, some in counts.items()}
