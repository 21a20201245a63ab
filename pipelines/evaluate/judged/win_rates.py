"""Win rates of one model over another by a judge who saw each pair of answers in both orders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, stdtrit

from pipelines.evaluate.stats import QUANTILE

NEWTON_STEPS, TOLERANCE = 50, 1e-10
# A weak pull of the coefficients to 0 keeps them finite where length tells every verdict.
RIDGE = 1e-2


@dataclass(frozen=True)
class Comparison:
    """A judge's verdicts on two models' answers to one prompt.

    Attributes:
        first: the verdict with the own answer shown first: 1 for the own answer, 0 for the other, 0.5 for a tie.
        second: the verdict with the own answer shown second, told in the same way.
        length: of the own answer, in tokens or characters.
        other_length: of the other answer, in the same unit.
    """

    first: float
    second: float
    length: int
    other_length: int

    @property
    def score(self) -> float:
        """The mean verdict of both orders: a judge who follows the order alone gives 0.5."""
        return (self.first + self.second) / 2


@dataclass(frozen=True)
class WinRate:
    """A win rate, ties counted as half, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class JudgedReport:
    """What a judge's comparisons tell.

    Attributes:
        win_rate: the plain win rate.
        length_controlled: the win rate between answers of equal length.
        ties: the share of prompts whose score is 0.5.
        flips: the share of prompts at which the verdict follows the order: the judge prefers the same place twice.
        first_place: the share of verdicts for the answer shown first, ties as half; 0.5 without a bias.
        length_effect: the change of the log-odds of winning with one standard deviation of the difference in length.
    """

    win_rate: WinRate
    length_controlled: WinRate
    ties: float
    flips: float
    first_place: WinRate
    length_effect: float


def judge_report(comparisons: Sequence[Comparison]) -> JudgedReport:
    """Computes win rates and the judge's biases.

    Args:
        comparisons: of n prompts, at least two.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(comparisons) < 2:
        raise ValueError("a win rate with an interval needs at least two prompts")
    scores = np.array([one.score for one in comparisons])
    flips = [{one.first, one.second} == {0.0, 1.0} for one in comparisons]
    # The second verdict is told from the own answer, which then stands second.
    first_place = np.array([(one.first + 1 - one.second) / 2 for one in comparisons])
    controlled, effect = _length_controlled(scores, comparisons)
    return JudgedReport(
        win_rate=_mean(scores),
        length_controlled=controlled,
        ties=float(np.mean(scores == 0.5)),
        flips=float(np.mean(flips)),
        first_place=_mean(first_place),
        length_effect=effect,
    )


def _mean(values: np.ndarray) -> WinRate:
    """A mean with Student's interval, cut to 0 and 1."""
    n, mean = len(values), float(values.mean())
    half = float(stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n)
    return WinRate(mean, max(0.0, mean - half), min(1.0, mean + half), n)


def _length_controlled(scores: np.ndarray, comparisons: Sequence[Comparison]) -> tuple[WinRate, float]:
    """The win rate at a difference of 0 in length, by logistic regression of the scores on tanh of the standardized
    difference (Dubois et al. 2024, https://arxiv.org/abs/2404.04475, eq. 2, without its terms for prompts).

    Scores of one half make it a fractional regression (Papke and Wooldridge 1996), with their robust covariance.

    Returns:
        The win rate, and the coefficient of length.
    """
    differences = np.array([one.length - one.other_length for one in comparisons], dtype=float)
    scale = float(differences.std())
    lengths = np.tanh(differences / scale) if scale else np.zeros(len(scores))
    table = np.column_stack([np.ones(len(scores)), lengths])
    pull = np.diag([0.0, RIDGE])
    # Equal lengths leave the coefficient of length undetermined, and scores of all 0 or 1 the other.
    pull[0, 0] = RIDGE if scores.min() == scores.max() and scores.min() in (0.0, 1.0) else 0.0
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        expected = expit(table @ weights)
        hessian = (table * (expected * (1 - expected))[:, None]).T @ table + pull
        step = np.linalg.solve(hessian, table.T @ (scores - expected) - pull @ weights)
        weights += step
        if float(np.abs(step).max()) < TOLERANCE:
            break
    expected = expit(table @ weights)
    inverse = np.linalg.inv((table * (expected * (1 - expected))[:, None]).T @ table + pull)
    residuals = table * (scores - expected)[:, None]
    n = len(scores)
    covariance = inverse @ (residuals.T @ residuals * n / max(1, n - 2)) @ inverse
    half = QUANTILE * math.sqrt(float(covariance[0, 0]))
    low, value, high = (float(expit(weights[0] + side * half)) for side in (-1, 0, 1))
    return WinRate(value, low, high, n), float(weights[1])
