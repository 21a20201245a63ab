"""Learning curves: metrics of a stage over its steps, laid out for a small drawing."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run.metrics import read_metrics

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20
# More points than the drawing has pixels across only make the page heavy.
POINTS = 160


@dataclass(frozen=True)
class Polyline:
    """One line: its name, an SVG `points` attribute, and its first and last value."""

    name: str
    points: str
    first: float
    last: float


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in the drawing's units, and what it says."""

    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A drawing of one or two metrics over the steps of a stage."""

    title: str
    lines: list[Polyline]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class _Plan:
    folder: str
    title: str
    names: dict[str, str]


_LOSS = {"loss": "training", "held_out_loss": "held out"}
_PLANS = (
    _Plan("base", "Pre-training loss", _LOSS),
    _Plan("sft", "Fine-tuning loss", _LOSS),
    _Plan("reward", "Reward model loss", _LOSS),
    _Plan("policy", "RLHF: reward", {"reward": "mean"}),
    _Plan("policy", "RLHF: KL to the fine-tuned model", {"kl_sequence": "nats an answer"}),
    _Plan("policy", "RLHF: response length", {"response_length": "tokens"}),
    _Plan("policy", "RLHF: held-out judgements it moved towards", {"preference_accuracy": "share of pairs"}),
    _Plan("policy", "RLHF: reward and length", {"length_correlation": "correlation in a prompt's answers"}),
    _Plan("policy", "RLHF: repeated runs of three tokens", {"repetition": "share of an answer"}),
    _Plan("policy", "RLHF: entropy", {"entropy": "nats a token"}),
    _Plan("policy", "RLHF: waiting", {"learner_idle": "learner", "rollout_idle": "rollout actors"}),
)


def learning_curves(root: Path) -> list[Curve]:
    """The curves of a run's stages; a metric that a stage did not write has none."""
    curves = []
    for plan in _PLANS:
        rows = read_metrics(root / plan.folder)
        series = {label: _series(rows, name) for name, label in plan.names.items()}
        if any(len(points) > 1 for points in series.values()):
            curves.append(_curve(plan.title, {label: points for label, points in series.items() if points}))
    return curves


def _series(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    bucket = -(-len(found) // POINTS)
    parts = [found[begin : begin + bucket] for begin in range(0, len(found), bucket or 1)]
    return [(sum(step for step, _ in p) / len(p), sum(value for _, value in p) / len(p)) for p in parts]


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
                # The first point twice: a line of one point alone would not be drawn.
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
    """About `count` marks at multiples of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _x(step: float, limits: tuple[float, float]) -> float:
    return LEFT + (step - limits[0]) / ((limits[1] - limits[0]) or 1.0) * (WIDTH - LEFT - RIGHT)


def _y(value: float, limits: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - limits[0]) / ((limits[1] - limits[0]) or 1.0) * (HEIGHT - TOP - BOTTOM)


# Histograms of the corpus's documents, laid out for drawings like those of the learning curves.
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
