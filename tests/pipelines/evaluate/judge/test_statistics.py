"""Win rates against closed forms and simulations with known truth."""

import numpy as np
import pytest
from scipy.optimize import minimize

from pipelines.evaluate.judge.asking import JudgedPair
from pipelines.evaluate.judge.pairs import Pair
from pipelines.evaluate.judge.statistics import PSEUDO_PAIRS, agreement, position_bias, win_rate


def simulated(chance: np.random.Generator, gain: float, longer: float, count: int = 300) -> tuple[list, list]:
    """Outcomes of a judge who likes the first model by `gain`, and length by 1, where the first writes more."""
    lengths = chance.integers(50, 150, size=(count, 2)) + np.array([int(longer), 0])
    difference = lengths[:, 0] - lengths[:, 1]
    logit = gain + np.tanh(difference / np.sqrt((difference**2).mean()))
    wins = chance.random(count) < 1 / (1 + np.exp(-logit))
    return wins.astype(float).tolist(), [tuple(map(int, row)) for row in lengths]


def test_two_equal_models_are_equal_at_equal_length_whoever_writes_more():
    chance = np.random.default_rng(3)
    found = [win_rate(*simulated(chance, 0.0, longer=60)) for _ in range(100)]
    contained = sum(one.at_equal_length[1] <= 0.5 <= one.at_equal_length[2] for one in found)
    # 95 are expected; a binomial of 100 and 0.95 is below 90 in 1 of 100 series.
    assert contained >= 90
    # The judge's liking for length alone makes the raw rate a win.
    assert sum(one.raw.low > 0.5 for one in found if one.raw.low) > 90


def test_a_better_model_is_better_at_equal_length():
    rate = win_rate(*simulated(np.random.default_rng(4), 1.0, longer=-60, count=2000))
    assert rate.at_equal_length[0] == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)


def test_the_fit_is_that_of_a_general_optimizer():
    outcomes, lengths = simulated(np.random.default_rng(5), 0.3, longer=20, count=80)
    outcomes[:10] = [0.5] * 10
    differences = np.array([first - second for first, second in lengths])
    shifts = np.r_[np.tanh(differences / np.sqrt((differences**2).mean())), [row[0] for row in PSEUDO_PAIRS]]
    targets = np.r_[outcomes, [row[1] for row in PSEUDO_PAIRS]]

    def loss(weights: np.ndarray) -> float:
        logits = weights[0] + weights[1] * shifts
        return float((np.logaddexp(0, logits) - targets * logits).sum() + 0.5e-3 * weights[1] ** 2)

    theta = minimize(loss, np.zeros(2), tol=1e-12).x[0]
    assert win_rate(outcomes, lengths).at_equal_length[0] == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-5)


@pytest.mark.parametrize("outcomes", [[1.0] * 20, [0.5] * 20, [0.0, 1.0] * 10])
def test_a_win_rate_is_finite_without_losses_and_at_equal_lengths(outcomes: list[float]):
    rate = win_rate(outcomes, [(9, 9)] * 20)
    assert 0 < rate.at_equal_length[1] <= rate.at_equal_length[0] <= rate.at_equal_length[2] < 1
    assert rate.raw.value == np.mean(outcomes)


def test_agreement_is_split_by_which_answer_people_prefer():
    long, short = Pair("q", "long answer", "short", 1.0), Pair("q", "long answer", "short", 0.0)
    judged = [JudgedPair(long, 1.0, 1.0)] * 6 + [JudgedPair(short, 1.0, 1.0)] * 2 + [JudgedPair(short, None, 0.0)]
    found = agreement([*judged, JudgedPair(Pair("q", "a", "b", 0.5), 1.0, 1.0)])
    assert found is not None
    assert (found.agreement.value, found.agreement.n, found.without_verdict) == (0.75, 8, 1)
    assert found.longer_preferred is not None
    assert found.shorter_preferred is not None
    assert (found.longer_preferred.value, found.shorter_preferred.value) == (1.0, 0.0)
    assert (found.longer_by_judge, found.longer_by_people) == (1.0, 0.75)
    assert agreement(judged[-1:]) is None


def test_position_bias_counts_verdicts_for_the_answer_shown_first():
    pair = Pair("q", "a", "b")
    always_first, fair = JudgedPair(pair, 1.0, 0.0), JudgedPair(pair, 1.0, 1.0)
    whole, half = position_bias([always_first] * 20), position_bias([fair] * 20)
    assert whole is not None
    assert half is not None
    assert (whole.value, half.value) == (1.0, 0.5)
    assert whole.low > 0.5
    assert half.low <= 0.5 <= half.high
    assert position_bias([JudgedPair(pair, 0.5, 0.5)]) is None
