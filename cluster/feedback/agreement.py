"""Agreement of annotators on the same completions: with each other, with gold items, and with themselves later.

Agreement is the ceiling of any model that learns from annotators. Every figure is a mean over prompts, and its interval
a bootstrap over prompts, because the judgements of one prompt depend on each other. Skips and "all bad" have no ranks
and are left out.

Two libraries have parts of this. `krippendorff` 0.9 gives the same alpha to 1e-16, but takes 12 times as long for the
bootstrap (0.17 s against 0.014 s for 200 prompts and three annotators), and has no alpha of one annotator;
`scipy.stats.kendalltau` gives the same tau and takes 6 times as long. Tests compare against definition and SciPy.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cluster.feedback.tables import GOLD, Ranking, Repeat

# Bootstrap samples of an interval, and its percentiles: 95 %.
RESAMPLES = 1_000
INTERVAL = (0.025, 0.975)
# Distinct mid-ranks of at most nine completions, in halves: ties share the mean of the ranks that they take up.
MID_RANKS = 17
# Columns of a prompt's sums before its coincidences: numerator and denominator of pairwise, tau and unanimous.
SHARES = 6

Floats = NDArray[np.float64]
Ranks = Mapping[str, int]


@dataclass(frozen=True)
class BootstrapEstimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of one annotator with the others, or of all with each other. Figures are None where undefined.

    Attributes:
        annotator: the name, or None for all annotators.
        judged: number of rankings by the annotator.
        shared: number of prompts that two or more people ranked, the annotator among them.
        pairwise: share of pairs of completions that two people order the same way; a tie agrees only with a tie.
        tau: Kendall's tau-b of two people's rankings (Kendall 1945), mean over prompts and pairs of people; undefined,
            and left out, where one of them ties all completions.
        alpha: Krippendorff's alpha for ordinal data (Krippendorff 2011), with completions as units and mid-ranks as
            values; of one annotator, over the pairs of values of which one is theirs.
        unanimous: share of the shared prompts on which all rankings are equal.
        seconds: quartiles of the time that a ranking took.
    """

    annotator: str | None
    judged: int
    shared: int
    pairwise: BootstrapEstimate | None
    tau: BootstrapEstimate | None
    alpha: BootstrapEstimate | None
    unanimous: BootstrapEstimate | None
    seconds: tuple[float, float, float] | None


@dataclass(frozen=True)
class Reliability:
    """Agreement of one annotator with gold items and with their own second judgement. Figures are None where undefined.

    Attributes:
        annotator: the name.
        gold: share of the pairs ordered by a gold item that they order the same way; a tie counts as wrong.
        gold_items: number of gold items that they ranked.
        consistency: share of pairs that they order the same way twice; a tie agrees only with a tie.
        repeats: number of prompts that they ranked twice.
    """

    annotator: str
    gold: BootstrapEstimate | None
    gold_items: int
    consistency: BootstrapEstimate | None
    repeats: int


def agreement(rankings: Sequence[Ranking], seed: int = 1) -> list[Agreement]:
    """Computes the agreement of all annotators, then of each by name.

    Args:
        rankings: judgements; those without ranks are left out.
        seed: the seed of the bootstrap.
    """
    ranked = [row for row in rankings if row.ranks]
    prompts: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for row in ranked:
        prompts[row.prompt_id][row.annotator] = row.ranks
    shared = [by_annotator for by_annotator in prompts.values() if len(by_annotator) > 1]
    return [
        _agreement(name, [row for row in ranked if name in (None, row.annotator)], shared, seed)
        for name in (None, *sorted({row.annotator for row in ranked}))
    ]


def reliability(judgements: Sequence[Ranking], repeats: Sequence[Repeat], seed: int = 1) -> list[Reliability]:
    """Computes the reliability of each annotator by name.

    Args:
        judgements: first judgements, with the expected rankings of gold items (by the annotator `GOLD`).
        repeats: second judgements.
        seed: the seed of the bootstrap.
    """
    expected = {row.prompt_id: row.ranks for row in judgements if row.annotator == GOLD}
    first: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for row in judgements:
        if row.ranks and row.annotator != GOLD:
            first[row.annotator][row.prompt_id] = row.ranks
    second: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for repeat in repeats:
        if repeat.ranks:
            second[repeat.annotator][repeat.prompt_id] = repeat.ranks
    found = []
    for name in sorted(first):
        own, again = first[name], second[name]
        gold = [_equal_orders(expected[prompt], ranks, True) for prompt, ranks in own.items() if prompt in expected]
        twice = [_equal_orders(ranks, own[prompt], False) for prompt, ranks in again.items() if prompt in own]
        found.append(Reliability(name, _mean_share(gold, seed), len(gold), _mean_share(twice, seed), len(twice)))
    return found


def ordinal_alpha(coincidences: Floats) -> Floats:
    """Computes Krippendorff's alpha for ordinal data (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        coincidences: ... x V x V, symmetric, the values in ascending order.

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


def pairs_alike(by_annotator: Mapping[str, Ranks]) -> float | None:
    """Returns the share of pairs of one prompt's completions that two people order the same way; None if fewer than two
    people ranked it.

    Args:
        by_annotator: the ranks by completion that each annotator gave.
    """
    agree, pairs = _sums(by_annotator, None)[:2].tolist()
    return agree / pairs if pairs else None


def _agreement(annotator: str | None, ranked: list[Ranking], shared: list[dict[str, Ranks]], seed: int) -> Agreement:
    own = [by_annotator for by_annotator in shared if annotator is None or annotator in by_annotator]
    seconds = [row.seconds for row in ranked if row.seconds > 0]
    first, median, third = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist() if seconds else (0, 0, 0)
    pairwise = tau = alpha = unanimous = None
    if own:
        sums = _without_unused_values(np.array([_sums(by_annotator, annotator) for by_annotator in own]))
        totals = np.vstack([sums.sum(0), _bootstrap_weights(len(own), seed) @ sums])
        pairwise, tau, unanimous = (_estimate(_ratio(column), totals) for column in (0, 2, 4))
        alpha = _estimate(_alpha_of_totals, totals)
    return Agreement(
        annotator=annotator,
        judged=len(ranked),
        shared=len(own),
        pairwise=pairwise,
        tau=tau,
        alpha=alpha,
        unanimous=unanimous,
        seconds=(first, median, third) if seconds else None,
    )


def _sums(by_annotator: Mapping[str, Ranks], annotator: str | None) -> Floats:
    """Returns a prompt's terms of the numerators and denominators of all figures: agreeing pairs, pairs, sum of taus,
    number of taus, 1 if unanimous, 1, and the coincidences."""
    agree = pairs = taus = 0
    tau = 0.0
    unanimous = True
    for first, second in combinations(sorted(by_annotator), 2):
        if annotator not in (None, first, second):
            continue
        common = sorted(by_annotator[first].keys() & by_annotator[second].keys())
        one, other = (_pair_orders([by_annotator[name][key] for key in common]) for name in (first, second))
        agree += int((one == other).sum())
        pairs += len(one)
        unanimous &= bool((one == other).all())
        if (found := _tau(one, other)) is not None:
            tau, taus = tau + found, taus + 1
    return np.concatenate([[agree, pairs, tau, taus, unanimous, 1], _coincidences(by_annotator, annotator).ravel()])


def _pair_orders(ranks: Sequence[int]) -> NDArray[np.int64]:
    """Returns for every pair of completions 1 if the first is better, -1 if the second is, and 0 for a tie."""
    values = np.asarray(ranks)
    first, second = _pairs(len(values))
    return np.sign(values[second] - values[first])


@cache
def _pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of the first and of the second item of every pair out of `count` items."""
    first, second = np.triu_indices(count, 1)
    return first, second


def _tau(one: NDArray[np.int64], other: NDArray[np.int64]) -> float | None:
    untied = np.count_nonzero(one) * np.count_nonzero(other)
    return float((one * other).sum() / np.sqrt(untied)) if untied else None


def _coincidences(by_annotator: Mapping[str, Ranks], annotator: str | None) -> Floats:
    """Counts how often two values occur in the same unit; a unit with m values adds m in all.

    Returns:
        MID_RANKS x MID_RANKS, symmetric.
    """
    units: dict[str, dict[str, int]] = defaultdict(dict)
    for name, ranks in by_annotator.items():
        given = np.fromiter(ranks.values(), int)
        # Twice the mid-rank, from 0: two for every better completion, one for every other that ties.
        halves = 2 * (given[:, None] > given).sum(1) + (given[:, None] == given).sum(1) - 1
        for key, value in zip(ranks, halves.tolist(), strict=True):
            units[key][name] = value
    found = np.zeros((MID_RANKS, MID_RANKS))
    for unit in units.values():
        for first, second in combinations(unit, 2):
            if annotator in (None, first, second):
                found[unit[first], unit[second]] += 1 / (len(unit) - 1)
                found[unit[second], unit[first]] += 1 / (len(unit) - 1)
    return found


def _without_unused_values(sums: Floats) -> Floats:
    coincidences = sums[:, SHARES:].reshape(-1, MID_RANKS, MID_RANKS)
    used = np.flatnonzero(coincidences.sum((0, 1)))
    return np.hstack([sums[:, :SHARES], coincidences[:, used][:, :, used].reshape(len(sums), -1)])


def _alpha_of_totals(totals: Floats) -> Floats:
    values = math.isqrt(totals.shape[1] - SHARES)
    return ordinal_alpha(totals[:, SHARES:].reshape(-1, values, values))


def _ratio(column: int) -> Callable[[Floats], Floats]:
    """Returns a function of totals that divides the column by the next one; NaN where that is 0."""

    def ratio(totals: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return totals[:, column] / totals[:, column + 1]

    return ratio


def _equal_orders(right: Ranks, given: Ranks, only_ordered: bool) -> tuple[int, int]:
    """Counts the pairs of completions that both rankings order the same way, and all pairs; or only those that `right`
    orders."""
    common = sorted(right.keys() & given.keys())
    one, other = (_pair_orders([ranks[key] for key in common]) for ranks in (right, given))
    counted = one != 0 if only_ordered else np.ones(len(one), bool)
    return int((counted & (one == other)).sum()), int(counted.sum())


def _mean_share(counts: Sequence[tuple[int, int]], seed: int) -> BootstrapEstimate | None:
    """Estimates the share of all pairs from the counts of each prompt."""
    if not counts:
        return None
    sums = np.array(counts, float)
    return _estimate(_ratio(0), np.vstack([sums.sum(0), _bootstrap_weights(len(sums), seed) @ sums]))


def _bootstrap_weights(prompts: int, seed: int) -> NDArray[np.int64]:
    """Draws RESAMPLES x prompts: how often each prompt is in each bootstrap sample."""
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)


def _estimate(figure: Callable[[Floats], Floats], totals: Floats) -> BootstrapEstimate | None:
    """Estimates a figure from totals: of all prompts in row 0, of the bootstrap samples in the others."""
    value, *resampled = figure(totals)
    if np.isnan(value):
        return None
    low, high = np.nanquantile(resampled, INTERVAL)
    return BootstrapEstimate(float(value), float(low), float(high))
