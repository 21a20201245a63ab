"""How far people agree when they rank the same answers: the ceiling of any model that learns from them.

Every figure is a mean over prompts, and its interval a bootstrap over prompts: the judgements of one prompt depend on
each other. Skips and "all bad" carry no ranking and are left out.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cluster.feedback.tables import GOLD, Ranking, Repeat

# How reliable one person is: on items whose right ranking is known, and on prompts that they ranked twice.
RESAMPLES = 1_000
# Ranks among at most nine answers, in halves: answers that tie share the mean of the ranks that they take up.
VALUES = 17
# Columns of a prompt's sums before the coincidences.
SHARES = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How far one person agrees with the others, or all with each other. A figure is None where nothing defines it.

    Attributes:
        annotator: whose, or None for all.
        judged: how many rankings they gave.
        shared: how many prompts two or more people ranked, this one among them.
        pairwise: share of pairs of answers that two people order the same way; a tie agrees with a tie alone.
        tau: Kendall's tau-b of two people's rankings (Kendall 1945), mean over prompts and pairs of people; where one
            ties all answers it is not defined and left out.
        alpha: Krippendorff's alpha for ordinal data (Krippendorff 2011): answers are the units and mid-ranks the
            values. Of one person: over the pairs of values that they are one side of.
        unanimous: share of the shared prompts that all rank alike.
        seconds: quartiles of the time that a ranking took.
    """

    annotator: str | None
    judged: int
    shared: int
    pairwise: Estimate | None
    tau: Estimate | None
    alpha: Estimate | None
    unanimous: Estimate | None
    seconds: tuple[float, float, float] | None


def agreement(rankings: Sequence[Ranking], seed: int = 1) -> list[Agreement]:
    """The agreement of all, then of every annotator by name."""
    ranked = [row for row in rankings if row.ranks]
    prompts: dict[str, dict[str, Mapping[str, int]]] = defaultdict(dict)
    for row in ranked:
        prompts[row.prompt_id][row.annotator] = row.ranks
    shared = [said for said in prompts.values() if len(said) > 1]
    return [
        _agreement(name, [row for row in ranked if name in (None, row.annotator)], shared, seed)
        for name in (None, *sorted({row.annotator for row in ranked}))
    ]


def _agreement(
    annotator: str | None, ranked: list[Ranking], shared: list[dict[str, Mapping[str, int]]], seed: int
) -> Agreement:
    mine = [said for said in shared if annotator is None or annotator in said]
    seconds = [row.seconds for row in ranked if row.seconds > 0]
    first, median, third = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist() if seconds else (0, 0, 0)
    pairwise = tau = alpha = unanimous = None
    if mine:
        sums = _without_unused_values(np.array([_sums(said, annotator) for said in mine]))
        weights = np.random.default_rng(seed).multinomial(len(mine), [1 / len(mine)] * len(mine), RESAMPLES)
        totals = np.vstack([sums.sum(0), weights @ sums])
        pairwise, tau, unanimous = (_estimate(_share(column), totals) for column in (0, 2, 4))
        alpha = _estimate(_alpha_of_totals, totals)
    return Agreement(
        annotator=annotator,
        judged=len(ranked),
        shared=len(mine),
        pairwise=pairwise,
        tau=tau,
        alpha=alpha,
        unanimous=unanimous,
        seconds=(first, median, third) if seconds else None,
    )


def _sums(said: Mapping[str, Mapping[str, int]], annotator: str | None) -> Floats:
    """What one prompt adds to numerators and denominators of all figures: pairs that agree, pairs, tau, taus, 1 if
    unanimous, 1, and the coincidences."""
    agree = pairs = taus = 0
    tau = 0.0
    unanimous = True
    for first, second in combinations(sorted(said), 2):
        if annotator not in (None, first, second):
            continue
        common = sorted(said[first].keys() & said[second].keys())
        one, other = (orders([said[name][key] for key in common]) for name in (first, second))
        agree += int((one == other).sum())
        pairs += len(one)
        unanimous &= bool((one == other).all())
        if (found := _tau(one, other)) is not None:
            tau, taus = tau + found, taus + 1
    return np.concatenate([[agree, pairs, tau, taus, unanimous, 1], _coincidences(said, annotator).ravel()])


def orders(ranks: Sequence[int]) -> NDArray[np.int64]:
    """For every pair of answers -1, 0 or 1: which is the better one."""
    values = np.asarray(ranks)
    first, second = np.triu_indices(len(values), 1)
    return np.sign(values[second] - values[first])


def _tau(one: NDArray[np.int64], other: NDArray[np.int64]) -> float | None:
    untied = np.count_nonzero(one) * np.count_nonzero(other)
    return float((one * other).sum() / np.sqrt(untied)) if untied else None


def _coincidences(said: Mapping[str, Mapping[str, int]], annotator: str | None) -> Floats:
    """How often values meet in a unit, VALUES x VALUES and symmetric; a unit with m values counts m of them."""
    units: dict[str, dict[str, int]] = defaultdict(dict)
    for name, ranks in said.items():
        given = np.fromiter(ranks.values(), int)
        # Twice the mid-rank, from 0: two for every better answer, one for every other that ties.
        halves = 2 * (given[:, None] > given).sum(1) + (given[:, None] == given).sum(1) - 1
        for key, value in zip(ranks, halves.tolist(), strict=True):
            units[key][name] = value
    found = np.zeros((VALUES, VALUES))
    for unit in units.values():
        for first, second in combinations(unit, 2):
            if annotator in (None, first, second):
                found[unit[first], unit[second]] += 1 / (len(unit) - 1)
                found[unit[second], unit[first]] += 1 / (len(unit) - 1)
    return found


def ordinal_alpha(coincidences: Floats) -> Floats:
    """Krippendorff's alpha with the ordinal metric (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        coincidences: ... x V x V, symmetric, the values in their order.

    Returns:
        alpha, shape ...; NaN where only one value occurs.
    """
    counts = coincidences.sum(-1)
    ranks = counts.cumsum(-1) - counts / 2
    distance = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (coincidences * distance).sum((-2, -1))
    expected = (counts[..., :, None] * counts[..., None, :] * distance).sum((-2, -1)) / (counts.sum(-1) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def _without_unused_values(sums: Floats) -> Floats:
    coincidences = sums[:, SHARES:].reshape(-1, VALUES, VALUES)
    used = np.flatnonzero(coincidences.sum((0, 1)))
    return np.hstack([sums[:, :SHARES], coincidences[:, used][:, :, used].reshape(len(sums), -1)])


def _alpha_of_totals(totals: Floats) -> Floats:
    values = math.isqrt(totals.shape[1] - SHARES)
    return ordinal_alpha(totals[:, SHARES:].reshape(-1, values, values))


def _share(column: int) -> Callable[[Floats], Floats]:
    def share(totals: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return totals[:, column] / totals[:, column + 1]

    return share


def _estimate(figure: Callable[[Floats], Floats], totals: Floats) -> Estimate | None:
    value, *resampled = figure(totals)
    if np.isnan(value):
        return None
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


Ranks = Mapping[str, int]


@dataclass(frozen=True)
class Reliability:
    """One person's, with 95 % intervals by bootstrap over prompts. A figure is None where nothing defines it.

    Attributes:
        annotator: whose.
        gold: share of the pairs that a gold item orders which they order the same way; a tie is not the same.
        gold_items: how many gold items they ranked.
        consistency: share of pairs that they order the same way twice; a tie agrees with a tie alone.
        repeats: how many prompts they ranked twice.
    """

    annotator: str
    gold: Estimate | None
    gold_items: int
    consistency: Estimate | None
    repeats: int


def reliability(judgements: Sequence[Ranking], repeats: Sequence[Repeat], seed: int = 1) -> list[Reliability]:
    """Of everyone in `judgements` but the gold items' own annotator, by name."""
    expected = {row.prompt_id: row.ranks for row in judgements if row.annotator == GOLD}
    said: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for row in judgements:
        if row.ranks and row.annotator != GOLD:
            said[row.annotator][row.prompt_id] = row.ranks
    again: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for repeat in repeats:
        if repeat.ranks:
            again[repeat.annotator][repeat.prompt_id] = repeat.ranks
    found = []
    for name in sorted(said):
        on_gold = [_same(expected[prompt], own, True) for prompt, own in said[name].items() if prompt in expected]
        twice = [_same(own, said[name][prompt], False) for prompt, own in again[name].items() if prompt in said[name]]
        found.append(
            Reliability(name, _agreement_share(on_gold, seed), len(on_gold), _agreement_share(twice, seed), len(twice))
        )
    return found


def _same(right: Ranks, given: Ranks, only_ordered: bool) -> tuple[int, int]:
    """How many pairs of answers both order the same way, of how many."""
    common = sorted(right.keys() & given.keys())
    one, other = (orders([ranks[key] for key in common]) for ranks in (right, given))
    counted = one != 0 if only_ordered else np.ones(len(one), bool)
    return int((counted & (one == other)).sum()), int(counted.sum())


def _agreement_share(counts: Sequence[tuple[int, int]], seed: int) -> Estimate | None:
    sums = np.array(counts, float).reshape(-1, 2)
    if not sums[:, 1].sum():
        return None
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    drawn = weights @ sums
    low, high = np.quantile(drawn[drawn[:, 1] > 0, 0] / drawn[drawn[:, 1] > 0, 1], [0.025, 0.975])
    return Estimate(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high))
