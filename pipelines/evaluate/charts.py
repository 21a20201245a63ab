"""Lays out the report's SVG charts: learning curves of the stages, and histograms of the corpus's signals."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run.metrics import read_metrics

# In SVG units: the size of a chart, and the margins around its plot area.
WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20
# More points than the chart has pixels across only make the page heavy.
MAX_POINTS = 160
MAX_BIN_LABELS = 5


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in SVG units, and its label."""

    position: float
    label: str


@dataclass(frozen=True)
class Polyline:
    """A line of a chart: its name, its SVG `points` attribute, and its first and last value."""

    name: str
    points: str
    first: float
    last: float


@dataclass(frozen=True)
class Curve:
    """A chart of one or two metrics over the steps of a stage."""

    title: str
    lines: list[Polyline]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram in SVG units, and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """A chart of the distribution of one signal over documents."""

    title: str
    documents: int
    bars: list[Bar]
    ticks: list[Tick]


@dataclass(frozen=True)
class _CurveSpec:
    """A chart to draw: the run's subfolder with the metrics, a title, and the label of each metric."""

    folder: str
    title: str
    labels: dict[str, str]


_LOSS = {"loss": "training", "held_out_loss": "held out"}
_CURVES = (
    _CurveSpec("base", "Pre-training loss", _LOSS),
    _CurveSpec("sft", "Fine-tuning loss", _LOSS),
    _CurveSpec("reward", "Reward model loss", _LOSS),
    _CurveSpec("policy", "RLHF: reward", {"reward": "mean"}),
    _CurveSpec("policy", "RLHF: KL from the fine-tuned model", {"kl_sequence": "nats per answer"}),
    _CurveSpec("policy", "RLHF: response length", {"response_length": "tokens"}),
    _CurveSpec("policy", "RLHF: agreement with held-out rankings", {"preference_accuracy": "share of pairs"}),
    _CurveSpec("policy", "RLHF: reward and length", {"length_correlation": "correlation within a prompt's answers"}),
    _CurveSpec("policy", "RLHF: repeated 3-token runs", {"repetition": "share of an answer"}),
    _CurveSpec("policy", "RLHF: tokens of the answers against the fine-tuned model's", {"overoptimization": "bits"}),
    _CurveSpec("policy", "RLHF: reward explained by length, repetition, opening, token", {"cheap_explained": "share"}),
    _CurveSpec("policy", "RLHF: entropy", {"entropy": "nats per token"}),
    _CurveSpec("policy", "RLHF: idle time", {"learner_idle": "learner", "rollout_idle": "rollout actors"}),
)
_HISTOGRAM_TITLES = {
    "words": "Words per document",
    "mean_word_length": "Letters per word, mean of a document",
    "words_with_a_letter": "Share of words with a letter",
    "duplicate_lines": "Share of lines that repeat another",
    "top_2_gram": "Share of characters in the most frequent word pair",
    "duplicate_5_gram": "Share of characters in repeated 5-word runs",
    "punctuated_lines": "Share of lines that end with punctuation",
    "short_lines": "Share of short lines",
    "language_probability": "Probability of the language",
}


def learning_curves(root: Path) -> list[Curve]:
    """Lays out the learning curves of a run.

    Args:
        root: the run folder.

    Returns:
        One chart for each set of metrics that a stage has written for at least two steps.
    """
    curves = []
    for spec in _CURVES:
        rows = read_metrics(root / spec.folder)
        series = {label: _series(rows, name) for name, label in spec.labels.items()}
        if any(len(points) > 1 for points in series.values()):
            curves.append(_curve(spec.title, {label: points for label, points in series.items() if points}))
    return curves


def corpus_histograms(root: Path) -> list[Histogram]:
    """Lays out the histograms of the signals that a run's corpus stage measured; empty without such a corpus.

    Args:
        root: the run folder.
    """
    path = root / "corpus" / "stats.json"
    if not path.exists():
        return []
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("histograms", {})
    return [
        _histogram(title, measured[name]["edges"], measured[name]["counts"])
        for name, title in _HISTOGRAM_TITLES.items()
        if sum(measured.get(name, {}).get("counts", []))
    ]


def _series(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Returns the (step, value) points of a metric, averaged in buckets where there are more than `MAX_POINTS`."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    size = -(-len(points) // MAX_POINTS)
    buckets = [points[begin : begin + size] for begin in range(0, len(points), size or 1)]
    return [(sum(step for step, _ in b) / len(b), sum(value for _, value in b) / len(b)) for b in buckets]


def _curve(title: str, series: dict[str, list[tuple[float, float]]]) -> Curve:
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    x_range = (0.0, max(steps))
    x_marks, y_marks = _round_marks(*x_range, 4), _round_marks(min(values), max(values), 4)
    y_range = (y_marks[0], y_marks[-1])
    return Curve(
        title,
        [
            Polyline(
                label,
                # The first point twice: a polyline of a single point would not be drawn.
                " ".join(f"{_x(step, x_range):.1f},{_y(value, y_range):.1f}" for step, value in (points[:1] + points)),
                points[0][1],
                points[-1][1],
            )
            for label, points in series.items()
        ],
        [Tick(_x(mark, x_range), f"{mark:g}") for mark in x_marks if x_range[0] <= mark <= x_range[1]],
        [Tick(_y(mark, y_range), f"{mark:g}") for mark in y_marks],
    )


def _round_marks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` marks at multiples of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _x(step: float, limits: tuple[float, float]) -> float:
    return LEFT + (step - limits[0]) / ((limits[1] - limits[0]) or 1.0) * (WIDTH - LEFT - RIGHT)


def _y(value: float, limits: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - limits[0]) / ((limits[1] - limits[0]) or 1.0) * (HEIGHT - TOP - BOTTOM)


def _histogram(title: str, edges: list[float], counts: list[int]) -> Histogram:
    """Draws all bins equally wide, whatever their edges, without the empty ones at either end."""
    filled = [index for index, count in enumerate(counts) if count]
    first, last = filled[0], filled[-1]
    width = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    tallest, room = max(counts), HEIGHT - TOP - BOTTOM
    bars = [
        Bar(
            LEFT + (index - first) * width,
            HEIGHT - BOTTOM - room * counts[index] / tallest,
            max(width - 1, 1),
            room * counts[index] / tallest,
            f"{edges[index]:g} to {edges[index + 1]:g}: {counts[index]:,}",
        )
        for index in range(first, last + 1)
    ]
    every = -(-(last - first + 1) // MAX_BIN_LABELS)
    ticks = [Tick(LEFT + (index - first) * width, f"{edges[index]:g}") for index in range(first, last + 2, every)]
    return Histogram(title, sum(counts), bars, ticks)
