"""Statistics of judged pairs: win rate, win rate at equal length, position bias, and agreement with people."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluate.judge.asking import JudgedPair
from pipelines.evaluate.stats import QUANTILE, Proportion, clustered_proportion
from pipelines.evaluate.tasks.statistics import Estimate, estimate

NEWTON_STEPS = 50
# A win and a loss at equal length beside the data (Agresti and Coull 1998): without losses no fit would end.
PSEUDO_PAIRS = ((0.0, 1.0), (0.0, 0.0))


@dataclass(frozen=True)
class WinRate:
    """The share of comparisons that the first of two models wins, a tie counting half; with 95 % intervals.

    Attributes:
        raw: the mean outcome.
        at_equal_length: the outcome that is expected of two answers of one length.
        ties: the share of outcomes of a half.
    """

    raw: Estimate
    at_equal_length: tuple[float, float, float]
    ties: float


@dataclass(frozen=True)
class JudgeAgreement:
    """The agreement of a judge with people on the pairs in which these prefer one answer.

    Attributes:
        agreement: the judge's mean outcome for the answer that people prefer; 0.5 is chance.
        longer_preferred, shorter_preferred: the same where that is the longer, or the shorter answer; None without any.
        first_shown: the share of its decided verdicts for the answer shown first; 0.5 without position bias.
        inconsistent: the share of pairs on which the two orders gave different verdicts.
        longer_by_judge, longer_by_people: how often each prefers the longer answer; None if lengths are equal.
        without_verdict: pairs on which the judge gave none in one of the orders, which are left out.
    """

    agreement: Estimate
    longer_preferred: Estimate | None
    shorter_preferred: Estimate | None
    first_shown: Proportion | None
    inconsistent: float
    longer_by_judge: float | None
    longer_by_people: float | None
    without_verdict: int


def win_rate(outcomes: Sequence[float], lengths: Sequence[tuple[int, int]]) -> WinRate:
    """Computes the win rate of the first answers.

    At equal length it is 1 / (1 + e^-θ), by the logistic regression of outcomes on θ + φ tanh(d / σ), with the
    difference d of lengths and its root mean square σ (Dubois et al. 2024, https://arxiv.org/abs/2404.04475, eq. 2,
    without its terms of models and instructions); its interval has a variance that is robust to fractional outcomes.

    Args:
        outcomes: [n], 0 to 1.
        lengths: [n], characters of the first and second answer.
    """
    differences = np.array([first - second for first, second in lengths], dtype=float)
    scale = float(np.sqrt((differences**2).mean())) or 1.0
    shifts = np.tanh(differences / scale)
    theta, error = _intercept(
        np.r_[shifts, [shift for shift, _ in PSEUDO_PAIRS]], np.r_[outcomes, [value for _, value in PSEUDO_PAIRS]]
    )
    ends = [1 / (1 + math.exp(-value)) for value in (theta, theta - QUANTILE * error, theta + QUANTILE * error)]
    ties = sum(value == 0.5 for value in outcomes) / len(outcomes)
    return WinRate(estimate(outcomes, [1] * len(outcomes)), (ends[0], ends[1], ends[2]), ties)


def agreement(judged: Sequence[JudgedPair]) -> JudgeAgreement | None:
    """Compares a judge with people; None if there is no pair that both decide on.

    Args:
        judged: pairs whose `outcome` is that of people.
    """
    preferred = [one for one in judged if one.pair.outcome not in (None, 0.5)]
    decided = [one for one in preferred if one.outcome is not None]
    if not decided:
        return None
    scores = [_for_preferred(one) for one in decided]
    # For pairs of unequal lengths: whether people prefer the longer answer.
    longer = [None if _longer(one) is None else _longer(one) == one.pair.outcome for one in decided]
    by_length = {
        kind: [score for score, own in zip(scores, longer, strict=True) if own is kind] for kind in (True, False)
    }
    unequal = len(by_length[True]) + len(by_length[False])
    by_judge = sum(by_length[True]) + sum(1 - score for score in by_length[False])
    return JudgeAgreement(
        estimate(scores, [1] * len(scores)),
        _mean(by_length[True]),
        _mean(by_length[False]),
        position_bias(decided),
        sum(one.in_order != one.reversed for one in decided) / len(decided),
        by_judge / unequal if unequal else None,
        len(by_length[True]) / unequal if unequal else None,
        len(preferred) - len(decided),
    )


def position_bias(judged: Sequence[JudgedPair]) -> Proportion | None:
    """Computes the share of decided verdicts for the answer shown first, the two on one pair not being independent.

    Returns:
        None if every verdict is a tie.
    """
    hits, sizes = [], []
    for one in judged:
        own = [one.in_order == 1] * (one.in_order in (0, 1)) + [one.reversed == 0] * (one.reversed in (0, 1))
        if own:
            hits.append(sum(own))
            sizes.append(len(own))
    return clustered_proportion(hits, sizes) if hits else None


def _for_preferred(one: JudgedPair) -> float:
    value = one.outcome or 0.0
    return value if one.pair.outcome == 1 else 1 - value


def _longer(one: JudgedPair) -> float | None:
    """Returns 1 if the first answer is longer, 0 if the second is; None for equal lengths."""
    first, second = len(one.pair.first), len(one.pair.second)
    return None if first == second else float(first > second)


def _mean(values: Sequence[float]) -> Estimate | None:
    return estimate(values, [1] * len(values)) if values else None


def _intercept(shifts: np.ndarray, outcomes: np.ndarray) -> tuple[float, float]:
    """Fits outcomes on a constant and shifts by logistic regression; returns the constant and its robust error."""
    design = np.c_[np.ones(len(shifts)), shifts]
    # Equal lengths throughout leave the slope without information: it stays 0.
    ridge = np.diag([0.0, 1e-3])
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, design.T @ (outcomes - chance) - ridge @ weights)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    scores = design * (outcomes - 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30))))[:, None]
    inverse = np.linalg.inv(curvature)
    variance = inverse @ (scores.T @ scores) @ inverse * len(shifts) / max(1, len(shifts) - 2)
    return float(weights[0]), float(np.sqrt(variance[0, 0]))
