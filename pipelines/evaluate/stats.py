"""Statistics of the report: proportions and paired changes with 95 % intervals, and the divergence of two models.

Intervals are computed here rather than by scipy.stats, whose import takes seconds in every driver; the
tests compare them with it.
"""

import math
from collections.abc import Sequence
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
    value, square = hits / n, QUANTILE**2
    center = (value + square / (2 * n)) / (1 + square / n)
    half = QUANTILE / (1 + square / n) * math.sqrt(value * (1 - value) / n + square / (4 * n * n))
    return Proportion(value, n, max(0.0, center - half), min(1.0, center + half))


def difference(first: Proportion, second: Proportion) -> tuple[float, float]:
    """Computes the 95 % interval of `second - first` from both Wilson intervals (Newcombe 1998, method 10)."""
    change = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return change - below, change + above


@dataclass(frozen=True)
class Change:
    """The means of `n` cases before and after, and their difference with the ends of its 95 % interval."""

    before: float
    after: float
    change: float
    low: float
    high: float
    n: int


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """Computes the mean change over n paired cases, with Student's t interval; infinite for one case.

    Args:
        before: [n].
        after: [n], of the same cases.
    """
    differences = np.array(after) - np.array(before)
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    half = float(stdtrit(max(1, n - 1), 0.975)) * error
    return Change(float(np.mean(before)), float(np.mean(after)), mean, mean - half, mean + half, n)


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
