"""Statistics of tasks: a task's value with its interval, paired changes, the smallest difference that would have been
found, and Holm's correction for many comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from pipelines.evaluate.stats import QUANTILE, paired_shares, proportion

# Quantiles of the normal distribution for a test at 5 %, two-sided, that finds 80 % of the differences of its size.
DETECTABLE = QUANTILE + 0.841621


@dataclass(frozen=True)
class Estimate:
    """A value over `n` cases with the ends of its 95 % interval, which are None for a single case."""

    value: float
    n: int
    low: float | None
    high: float | None
    standard_error: float | None


@dataclass(frozen=True)
class TaskChange:
    """The change of a task's value from one model to another, paired by case.

    Attributes:
        before: the value of the first model on the `n` common cases.
        after: the value of the second.
        change: the difference.
        low: lower end of its 95 % interval; None for a single case.
        high: its upper end.
        n: the cases.
        p: the two-sided p-value of the hypothesis that there is no difference.
        detectable: the smallest difference that a test at 5 % finds 80 % of the time, given the spread of these cases
            (Miller 2024, https://arxiv.org/abs/2411.00640, section 5).
    """

    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    n: int
    p: float
    detectable: float | None


def estimate(values: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """Computes a task's value: a share of cases (Wilson's interval), a mean (Student's), or bits per byte (a ratio of
    sums, Cochran 1977, section 2.11).

    Args:
        values: [n], 1 or 0, shares, or bits of each case.
        sizes: [n], the bytes of each case; all 1 unless values are bits.
    """
    n = len(values)
    if set(values) <= {0.0, 1.0}:
        share = proportion(int(sum(values)), n)
        return Estimate(share.value, n, share.low, share.high, math.sqrt(share.value * (1 - share.value) / n))
    mean, error = _ratio(np.array(values), np.array(sizes, dtype=float))
    if error is None:
        return Estimate(mean, n, None, None, None)
    half = float(stdtrit(n - 1, 0.975)) * error
    return Estimate(mean, n, mean - half, mean + half, error)


def paired_task_change(before: Sequence[float], after: Sequence[float], sizes: Sequence[int]) -> TaskChange:
    """Computes the change over the same cases: of shares Tango's interval and McNemar's test, else Student's.

    Args:
        before: [n], the first model's values.
        after: [n], the second model's.
        sizes: [n], as in `estimate`.
    """
    n = len(before)
    if set(before) | set(after) <= {0.0, 1.0}:
        share = paired_shares([value == 1 for value in before], [value == 1 for value in after])
        gained = sum(two > one for one, two in zip(before, after, strict=True))
        lost = sum(two < one for one, two in zip(before, after, strict=True))
        p = 2 * float(ndtr(-abs(gained - lost) / math.sqrt(gained + lost))) if gained + lost else 1.0
        # Where fewer cases changed than a test needs at least, it counts with that least number.
        changed = max(gained + lost, math.ceil(QUANTILE**2)) / n
        detectable = min(1.0, DETECTABLE * math.sqrt(changed / n))
        return TaskChange(share.before, share.after, share.change, share.low, share.high, n, p, detectable)
    weights = np.array(sizes, dtype=float)
    change, error = _ratio(np.array(after) - np.array(before), weights)
    first, second = (float(np.sum(values) / weights.sum()) for values in (before, after))
    if error is None:
        return TaskChange(first, second, change, None, None, n, 1.0, None)
    half = float(stdtrit(n - 1, 0.975)) * error
    p = 2 * float(stdtr(n - 1, -abs(change) / error)) if error else float(change == 0)
    return TaskChange(first, second, change, change - half, change + half, n, p, DETECTABLE * error)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Those below 0.05 are differences of which, together, not even one is found by chance in 95 of 100 runs.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def centered(value: float, chance: float) -> float:
    """Rescales an accuracy so that 0 is chance and 1 is all right (Li et al. 2024, DataComp-LM, section 3.5)."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0


def _ratio(values: np.ndarray, weights: np.ndarray) -> tuple[float, float | None]:
    """Computes the ratio of two sums over cases, and its standard error; None for a single case."""
    n, ratio = len(values), float(values.sum() / weights.sum())
    if n < 2:
        return ratio, None
    residuals = values - ratio * weights
    return ratio, math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(weights.sum())
