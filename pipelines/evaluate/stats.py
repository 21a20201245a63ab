"""Statistics of the report: proportions and paired changes with 95 % intervals, and the divergence of two models.

Intervals are computed here rather than by scipy.stats, whose import takes seconds in every driver; the
tests compare them with it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

# The 97.5 % quantile of the normal distribution, for 95 % intervals.
QUANTILE = 1.959964


@dataclass(frozen=True)
class Proportion:
    """A share of `n` cases, `low` and `high` being the ends of its 95 % interval."""

    value: float
    n: int
    low: float
    high: float


def proportion(hits: int, n: int) -> Proportion:
    """Computes a share with its 95 % score interval (Wilson 1927), which stays within 0 and 1 and holds for small `n`.

    Args:
        hits: cases that count, 0 to n.
        n: all cases.

    Raises:
        ValueError: `n` is not positive.
    """
    if n <= 0:
        raise ValueError("a proportion needs at least one case")
    return Proportion(hits / n, n, *_score_interval(hits / n, n))


def clustered_proportion(hits: Sequence[int], sizes: Sequence[int]) -> Proportion:
    """Computes a share of cases that come in clusters, such as the pairs of answers to one prompt, with a 95 % interval
    that takes the cases of a cluster as dependent.

    It is the score interval of `n` divided by the design effect, the ratio of the share's variance over clusters to
    that of independent cases (Rao and Scott 1992, Biometrics 48, 577-585), and at least 1. If every case counts or
    none does, the ratio is unknown, and each cluster counts as one case.

    Args:
        hits: [m], the cases that count in each cluster.
        sizes: [m], all cases of each cluster.

    Raises:
        ValueError: there is no case.
    """
    right, cases = np.array(hits, float), np.array(sizes, float)
    right, cases = right[cases > 0], cases[cases > 0]
    clusters, n = len(cases), int(cases.sum())
    if n <= 0:
        raise ValueError("a proportion needs at least one case")
    value = float(right.sum()) / n
    independent = value * (1 - value) / n
    if independent and clusters > 1:
        variance = clusters / (clusters - 1) * float(((right - value * cases) ** 2).sum()) / n**2
        effective = n / max(1.0, variance / independent)
    else:
        effective = float(clusters)
    return Proportion(value, n, *_score_interval(value, effective))


def _score_interval(value: float, n: float) -> tuple[float, float]:
    square = QUANTILE**2
    center = (value + square / (2 * n)) / (1 + square / n)
    half = QUANTILE / (1 + square / n) * math.sqrt(value * (1 - value) / n + square / (4 * n * n))
    # For a share of 0 or 1 the interval ends at the share itself; min and max undo the rounding there.
    return max(0.0, min(value, center - half)), min(1.0, max(value, center + half))


@dataclass(frozen=True)
class ShareChange:
    """The change of a share over the same `n` cases.

    Attributes:
        before: the share before.
        after: the share after.
        change: their difference.
        low: lower end of its 95 % interval.
        high: its upper end.
        n: the cases.
        visible: the smallest difference that such an interval tells from 0, if all cases that change do so one way.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    n: int
    visible: float


def paired_shares(before: Sequence[bool], after: Sequence[bool]) -> ShareChange:
    """Computes the change of a share over paired cases, with the 95 % score interval of Tango (1998, Statistics in
    Medicine 17, 891-908). It excludes 0 exactly where McNemar's test finds a difference at 5 %.

    Args:
        before: [n], whether each case counts.
        after: [n], of the same cases.

    Raises:
        ValueError: there is no case, or their numbers differ.
    """
    pairs, n = list(zip(before, after, strict=True)), len(before)
    if not n:
        raise ValueError("a proportion needs at least one case")
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    change = (gained - lost) / n
    low = _bisect(lambda delta: _score(gained, lost, n, delta) < QUANTILE, -1.0, change)
    high = _bisect(lambda delta: _score(gained, lost, n, delta) < -QUANTILE, change, 1.0)
    return ShareChange(sum(before) / n, sum(after) / n, change, low, high, n, math.ceil(QUANTILE**2) / n)


def _score(gained: int, lost: int, n: int, delta: float) -> float:
    """Computes Tango's statistic for the hypothesis that the shares differ by `delta`; it falls as `delta` rises."""
    linear = (2 * n - gained + lost) * delta - gained - lost
    # The most likely share of lost cases if the shares differ by delta: the root of a quadratic equation.
    both = (math.sqrt(linear * linear + 8 * n * lost * delta * (1 - delta)) - linear) / (4 * n)
    variance = n * (2 * both + delta * (1 - delta))
    distance = gained - lost - n * delta
    return math.copysign(math.inf, distance) if variance <= 0 and distance else distance / math.sqrt(variance or 1.0)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Finds where `holds` turns true between two ends."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def share_difference(before: Proportion, after: Proportion) -> tuple[float, float]:
    """Computes the ends of the 95 % interval of the difference of two independent shares, after minus before, by method
    10 of Newcombe (1998, Statistics in Medicine 17, 873-890).
    """
    change = after.value - before.value
    low = change - math.hypot(after.value - after.low, before.high - before.value)
    return low, change + math.hypot(after.high - after.value, before.value - before.low)


@dataclass(frozen=True)
class Change:
    """The means of `n` cases before and after, and their difference with the ends of its 95 % interval, which a single
    case does not have.
    """

    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    n: int


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """Computes the mean change over n paired cases, with Student's t interval.

    Args:
        before: [n].
        after: [n], of the same cases.
    """
    differences = np.array(after) - np.array(before)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Change(float(np.mean(before)), float(np.mean(after)), mean, None, None, n)
    half = float(stdtrit(n - 1, 0.975)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Change(float(np.mean(before)), float(np.mean(after)), mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class RatioChange:
    """The relative change of a mean over `n` cases of unequal size; `low` and `high` are None for a single case, which
    has no interval.
    """

    change: float
    low: float | None
    high: float | None
    n: int


def log_ratio_change(before: Sequence[float], after: Sequence[float], sizes: Sequence[float]) -> RatioChange:
    """Computes exp(mean change) - 1, the mean weighted by size, with a 95 % interval: a ratio of two sums over clusters
    (Cochran 1977, section 2.11) and Student's t quantile.

    Args:
        before: [n], sums of a logarithm over each case.
        after: [n], of the same cases.
        sizes: [n], the terms of each sum.
    """
    differences, weights, n = np.array(after) - np.array(before), np.array(sizes, dtype=float), len(sizes)
    change = float(differences.sum() / weights.sum())
    if n < 2:
        return RatioChange(math.expm1(change), None, None, n)
    residuals = differences - change * weights
    half = float(stdtrit(n - 1, 0.975)) * math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(weights.sum())
    return RatioChange(math.expm1(change), math.expm1(change - half), math.expm1(change + half), n)


def divergence(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, float]:
    """Estimates KL(policy || reference) from samples of the policy by the mean log-ratio (Schulman 2020, k1; unbiased).

    Args:
        policy: log-probabilities in nats of every token of N answers, under the policy that generated them.
        reference: log-probabilities of the same tokens under the reference.

    Returns:
        `value` in nats per answer, its `standard_error`, the value `per_token`, and `n`, the number of answers.
    """
    ratios = [sum(own) - sum(other) for own, other in zip(policy, reference, strict=True)]
    n, mean = len(ratios), sum(ratios) / len(ratios)
    variance = sum((ratio - mean) ** 2 for ratio in ratios) / max(1, n - 1)
    return {
        "value": mean,
        "standard_error": math.sqrt(variance / n),
        "per_token": sum(ratios) / sum(map(len, policy)),
        "n": n,
    }


def interval_text(low: float, high: float, form: str = ".0%", of: str = "") -> str:
    """Writes a 95 % interval in words.

    Args:
        low: its lower end.
        high: its upper end.
        form: format of the two numbers.
        of: the words after "95% interval", such as " of the change".
    """
    return f"95% interval{of} {low:{form}} to {high:{form}}"
