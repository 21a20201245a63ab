"""Histograms of the corpus's documents, laid out for drawings like those of the learning curves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Tick

_TITLES = {
    "words": "Words a document",
    "mean_word_length": "Letters a word, mean of a document",
    "words_with_a_letter": "Share of words with a letter",
    "duplicate_lines": "Share of lines that repeat another",
    "top_2_gram": "Characters in the most frequent pair of words",
    "duplicate_5_gram": "Characters in repeated runs of five words",
    "punctuated_lines": "Share of lines that end with punctuation",
    "short_lines": "Share of short lines",
    "language_probability": "Probability of the language",
}
_LABELS = 5


@dataclass(frozen=True)
class Bar:
    """One bin, in the drawing's units, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """A drawing of how a signal is spread."""

    title: str
    documents: int
    bars: list[Bar]
    ticks: list[Tick]


def corpus_histograms(root: Path) -> list[Histogram]:
    """Of the signals that a run's corpus stage measured; none of a corpus that has no such figures."""
    path = root / "corpus" / "stats.json"
    if not path.exists():
        return []
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("histograms", {})
    return [
        _histogram(title, found[name]["edges"], found[name]["counts"])
        for name, title in _TITLES.items()
        if sum(found.get(name, {}).get("counts", []))
    ]


def _histogram(title: str, edges: list[float], counts: list[int]) -> Histogram:
    """Bins of one width each, whatever lies between their edges, without the empty ones at either end."""
    filled = [place for place, count in enumerate(counts) if count]
    first, last = filled[0], filled[-1]
    width = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    tallest, room = max(counts), HEIGHT - TOP - BOTTOM
    bars = [
        Bar(
            LEFT + (place - first) * width,
            HEIGHT - BOTTOM - room * counts[place] / tallest,
            max(width - 1, 1),
            room * counts[place] / tallest,
            f"{edges[place]:g} to {edges[place + 1]:g}: {counts[place]:,}",
        )
        for place in range(first, last + 1)
    ]
    every = -(-(last - first + 1) // _LABELS)
    ticks = [Tick(LEFT + (place - first) * width, f"{edges[place]:g}") for place in range(first, last + 2, every)]
    return Histogram(title, sum(counts), bars, ticks)
