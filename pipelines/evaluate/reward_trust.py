"""How far a reward model can be trusted to stand in for people: on pairs it never saw, and under planted probes."""

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
from pipelines.evaluate.reward_probes import Row, Score, probes
from pipelines.evaluate.stats import proportion

BINS = 5


def reward_model_report(
    rows: Sequence[Row], scores: Sequence[Sequence[float]], score: Score, chat: Chat, room: int
) -> Row:
    """All figures, for the manifest.

    Args:
        rows: held-out rows of rankings.parquet.
        scores: the reward model's scores of each row's answers.
        score: gives the reward model's scores of token ids, prompt and answer together.
        chat: the model's template.
        room: most tokens that the model reads.

    Raises:
        UserError: as `accuracy`.
    """
    right = accuracy(rows, scores)
    pairs = list(_pairs(rows, scores))
    return {
        "accuracy": right,
        "ceiling": ceiling(rows),
        "calibration": calibration(rows, scores),
        "by_rank_distance": _split(pairs, lambda pair: f"{pair['distance']} apart"),
        "by_kind": _split(pairs, lambda pair: pair["kind"] or "all"),
        "by_length": _split(pairs, _length_class),
        "probes": probes(rows, score, chat, room),
    }


def accuracy(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Row:
    """Share of pairs ordered rightly, of the pairs that the judge does not call a tie.

    Raises:
        UserError: there is none.
    """
    pairs = list(_pairs(rows, scores))
    if not pairs:
        raise UserError(
            "no two answers to a held-out prompt differ in rank: collect more prompts, or at a higher temperature"
        )
    return _share(pairs)


def ceiling(rows: Sequence[Row]) -> Row | None:
    """How often annotators themselves are right about a pair, or agree on it: no model of them can be expected to do
    better. None where every prompt has one annotator whose errors are not known."""
    graded = [row for row in rows if row["grades"] is not None]
    if graded:
        # The rule without its noise against the ranking as given.
        found = list(_pairs(graded, [[-rank for rank in row["ranks"]] for row in graded]))
        return {"of": "the annotator, against its rule without noise", **_share(found)} if found else None
    pairwise = agreement([_as_ranking(row) for row in rows])[0] if rows else None
    if pairwise is None or pairwise.pairwise is None:
        return None
    return {"of": "people with each other, ties included", "n": pairwise.shared, **asdict(pairwise.pairwise)}


def calibration(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Row:
    """Whether the model is right as often as it says: it says sigma(difference of the scores).

    Returns:
        `bins` of equal width from 0.5 to 1, each with the mean of what it says, how often it is right as annotators
        ranked, and the pairs `n`; and `error`, the mean gap over all pairs (Guo et al. 2017, ECE).
    """
    said = list(_pairs([{**row, "grades": None} for row in rows], scores))
    gaps = np.array([pair["gap"] for pair in said])
    confidence, right = 1 / (1 + np.exp(-np.abs(gaps))), gaps > 0
    which = np.minimum((2 * BINS * (confidence - 0.5)).astype(int), BINS - 1)
    bins = [
        {"says": float(confidence[own].mean()), "right": float(right[own].mean()), "n": int(own.sum())}
        for own in (which == index for index in range(BINS))
        if own.any()
    ]
    error = sum(part["n"] * abs(part["says"] - part["right"]) for part in bins) / max(1, len(said))
    return {"bins": bins, "error": error}


def _pairs(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Every pair of which the judge calls one better: the annotator without its noise where that is known, else the
    ranking itself. `gap` is the score of the better one less that of the other."""
    for row, score in zip(rows, scores, strict=True):
        quality = row["grades"] if row["grades"] is not None else [-rank for rank in row["ranks"]]
        for first, second in combinations(range(len(quality)), 2):
            if quality[first] == quality[second]:
                continue
            better, worse = (first, second) if quality[first] > quality[second] else (second, first)
            yield {
                "gap": score[better] - score[worse],
                "distance": abs(row["ranks"][better] - row["ranks"][worse]),
                "kind": row["kind"],
                "lengths": (len(row["answers"][better]), len(row["answers"][worse])),
            }


def _length_class(pair: Mapping[str, Any]) -> str:
    better, worse = pair["lengths"]
    if better > 1.2 * worse:
        return "the better one is longer"
    return "the better one is shorter" if worse > 1.2 * better else "about as long"


def _split(pairs: Sequence[Row], key: Callable[[Row], str]) -> dict[str, Row]:
    parts: dict[str, list[Row]] = defaultdict(list)
    for pair in pairs:
        parts[key(pair)].append(pair)
    return {name: _share(parts[name]) for name in sorted(parts)}


def _share(pairs: Sequence[Row]) -> dict[str, float]:
    return asdict(proportion(sum(pair["gap"] > 0 for pair in pairs), len(pairs)))


def _as_ranking(row: Row) -> Ranking:
    """The row with answers named by what they say, as different annotators may have ranked different ones."""
    names = [json.dumps(answer) for answer in row["answers"]]
    return Ranking(
        prompt_id=row["prompt_id"], annotator=row["annotator"], ranks=dict(zip(names, row["ranks"], strict=True))
    )
