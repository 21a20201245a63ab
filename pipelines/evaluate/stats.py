"""Statistics of the report: proportions with their intervals, paired changes, and the divergence of two models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

# The 97.5 % quantile of the normal distribution: all intervals are of 95 %.
QUANTILE = 1.959964


@dataclass(frozen=True)
class Proportion:
    """A share of `n` cases with its 95 % interval."""

    value: float
    n: int
    low: float
    high: float


def proportion(hits: int, n: int) -> Proportion:
    """A share with its 95 % score interval (Wilson 1927), which stays within 0 and 1 and is right for small `n`.

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
    """The 95 % interval of `second - first` (Newcombe 1998, method 10: both Wilson intervals joined)."""
    change = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return change - below, change + above


@dataclass(frozen=True)
class Change:
    """The means of `n` cases before and after, and the mean of what changed with its 95 % interval."""

    before: float
    after: float
    change: float
    low: float
    high: float
    n: int


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """What changed over the same cases, with Student's interval of the paired differences; infinite for one case."""
    differences = np.array(after) - np.array(before)
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    half = float(stdtrit(max(1, n - 1), 0.975)) * error
    return Change(float(np.mean(before)), float(np.mean(after)), mean, mean - half, mean + half, n)


def divergence(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, float]:
    """KL(policy || reference) from samples of the policy: the mean log-ratio, which is unbiased (Schulman 2020, k1).

    Args:
        policy: log-probabilities, in nats, of every token of N answers under the policy that drew them.
        reference: of the same tokens under the reference.

    Returns:
        `value` in nats an answer with its `standard_error`, `per_token`, and `n` answers.
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
