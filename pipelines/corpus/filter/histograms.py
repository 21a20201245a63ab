"""How signals are spread over the documents that were read: counts in fixed bins, so that parts add up."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.corpus.filter.signals import Signals

_WORDS = (0.0, *(2.0**power for power in range(21)))
_LETTERS = tuple(float(edge) for edge in range(17))
_SHARE = tuple(edge / 20 for edge in range(21))
# The edges of the bins; what is beyond the last counts in the last bin.
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
        ),
        _SHARE,
    ),
}


def count(signals: Signals) -> dict[str, NDArray[np.int64]]:
    """Documents in each bin, of every signal that was measured and has bins."""
    return {
        name: np.histogram(np.minimum(signals[name], edges[-1]), edges)[0]
        for name, edges in EDGES.items()
        if name in signals
    }


def described(counts: Mapping[str, list[int]]) -> dict[str, dict[str, list[float]]]:
    """Counts with the edges of their bins, as `stats.json` has them."""
    return {name: {"edges": list(EDGES[name]), "counts": list(some)} for name, some in counts.items()}
