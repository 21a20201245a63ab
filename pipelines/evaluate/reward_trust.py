"""Measures the quality of a reward model as a substitute for people: accuracy, ceiling, calibration, probes."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.feedback import Ranking
from cluster.feedback.agreement import agreement
from pipelines.evaluate.best_of_n import best_of_n
from pipelines.evaluate.reward_probes import Row, Score, run_probes
from pipelines.evaluate.stats import clustered_proportion

BINS = 5


def reward_model_report(
    rows: Sequence[Row], scores: Sequence[Sequence[float]], score: Score, chat: Chat, room: int
) -> Row:
    """Computes all figures of a reward model, for the manifest and the report.

    Args:
        rows: N held-out rows of rankings.parquet.
        scores: [N][K], the reward model's scores of each row's answers.
        score: the reward model.
        chat: the model's template.
        room: the most tokens that the model reads.

    Raises:
        UserError: no two answers to a prompt differ in rank.
    """
    accuracy = pair_accuracy(rows, scores)
    pairs = list(_pairs(rows, scores))
    return {
        "accuracy": accuracy,
        "ceiling": ceiling(rows),
        "calibration": calibration(rows, scores),
        "by_rank_distance": _split(pairs, lambda pair: f"{pair['distance']} apart"),
        "by_kind": _split(pairs, lambda pair: pair["kind"] or "all"),
        "by_length": _split(pairs, _length_class),
        "best_of_n": best_of_n(rows, scores),
        "probes": run_probes(rows, score, chat, room),
    }


def pair_accuracy(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Row:
    """Computes the share of pairs of answers that scores order as the annotator did, ties of the annotator left out.

    Args:
        rows: N rows of rankings.parquet.
        scores: [N][K], a score for each row's answers.

    Returns:
        The fields of `stats.Proportion`; `n` are pairs, and the interval is over prompts.

    Raises:
        UserError: no two answers to a prompt differ in rank.
    """
    pairs = list(_pairs(rows, scores))
    if not pairs:
        raise UserError(
            "no two answers to a held-out prompt differ in rank: collect more prompts, or at a higher temperature"
        )
    return _share(pairs)


def prompt_accuracies(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Computes the accuracy of `pair_accuracy` for each prompt that has a pair, by its id.

    Pairs of one prompt are not independent: an interval of a comparison has to be over prompts.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for row, own in zip(rows, scores, strict=True):
        right[row["prompt_id"]] += [pair["gap"] > 0 for pair in _pairs([row], [own])]
    return {name: sum(found) / len(found) for name, found in right.items() if found}


def ceiling(rows: Sequence[Row]) -> Row | None:
    """Estimates the accuracy that no model of the annotators can be expected to exceed.

    That is how often a synthetic annotator's noisy ranking is right about a pair, or how often people agree on one.

    Returns:
        The fields of `stats.Proportion`, and `of`, a description; None where no prompt has two annotators and none has
        grades without noise.
    """
    graded = [row for row in rows if row["grades"] is not None]
    if graded:
        # The ranking as given, with noise, against the grades without.
        pairs = list(_pairs(graded, [[-rank for rank in row["ranks"]] for row in graded]))
        return {"of": "the annotator, against its rule without noise", **_share(pairs)} if pairs else None
    pairwise = agreement([_as_ranking(row) for row in rows])[0] if rows else None
    if pairwise is None or pairwise.pairwise is None:
        return None
    return {"of": "people with each other, ties included", "n": pairwise.shared, **asdict(pairwise.pairwise)}


def calibration(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Row:
    """Compares the model's confidence in its order of a pair, sigmoid(difference of the scores), with its accuracy.

    Returns:
        `bins` of equal width from 0.5 to 1, each with the mean confidence `says`, the share `right` by the annotators'
        ranking, and the number of pairs `n`; and `error`, the expected calibration error (Guo et al. 2017).
    """
    pairs = list(_pairs([{**row, "grades": None} for row in rows], scores))
    gaps = np.array([pair["gap"] for pair in pairs])
    confidence, right = 1 / (1 + np.exp(-np.abs(gaps))), gaps > 0
    which = np.minimum((2 * BINS * (confidence - 0.5)).astype(int), BINS - 1)
    bins = [
        {"says": float(confidence[own].mean()), "right": float(right[own].mean()), "n": int(own.sum())}
        for own in (which == index for index in range(BINS))
        if own.any()
    ]
    error = sum(part["n"] * abs(part["says"] - part["right"]) for part in bins) / max(1, len(pairs))
    return {"bins": bins, "error": error}


def _pairs(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Yields every pair of answers that are not tied: by the grades without noise where there are any, else by rank.

    `gap` is the score of the better answer minus that of the other, `distance` the difference of their ranks, and
    `lengths` are their tokens.
    """
    for row, score in zip(rows, scores, strict=True):
        quality = row["grades"] if row["grades"] is not None else [-rank for rank in row["ranks"]]
        for first, second in combinations(range(len(quality)), 2):
            if quality[first] == quality[second]:
                continue
            better, worse = (first, second) if quality[first] > quality[second] else (second, first)
            yield {
                "prompt": row["prompt_id"],
                "gap": score[better] - score[worse],
                "distance": abs(row["ranks"][better] - row["ranks"][worse]),
                "kind": row["kind"],
                "lengths": (len(row["answers"][better]), len(row["answers"][worse])),
            }


def _length_class(pair: Mapping[str, Any]) -> str:
    better, worse = pair["lengths"]
    if better > 1.2 * worse:
        return "the better answer is longer"
    return "the better answer is shorter" if worse > 1.2 * better else "about equally long"


def _split(pairs: Sequence[Row], key: Callable[[Row], str]) -> dict[str, Row]:
    parts: dict[str, list[Row]] = defaultdict(list)
    for pair in pairs:
        parts[key(pair)].append(pair)
    return {name: _share(parts[name]) for name in sorted(parts)}


def _share(pairs: Sequence[Row]) -> dict[str, float]:
    """Computes the share of pairs that the scores order rightly; the pairs of one prompt are not independent."""
    hits: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = defaultdict(int)
    for pair in pairs:
        hits[pair["prompt"]] += pair["gap"] > 0
        sizes[pair["prompt"]] += 1
    return asdict(clustered_proportion([hits[name] for name in sizes], list(sizes.values())))


def _as_ranking(row: Row) -> Ranking:
    """Converts a row, naming answers by their tokens: annotators of one prompt may have ranked different answers."""
    names = [json.dumps(answer) for answer in row["answers"]]
    return Ranking(
        prompt_id=row["prompt_id"], annotator=row["annotator"], ranks=dict(zip(names, row["ranks"], strict=True))
    )
