"""Statistics of tasks against scipy and simulations."""

import random

import numpy as np
import pytest
from scipy import stats

from pipelines.evaluate.tasks.statistics import centered, estimate, holm, paired_task_change


def test_means_have_students_interval():
    values = [0.1, 0.4, 0.35, 0.8, 0.55]
    found = estimate(values, [1] * 5)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.standard_error == pytest.approx(stats.sem(values))


def test_paired_means_have_the_t_tests_p_value_and_interval():
    before, after = [0.1, 0.4, 0.35, 0.8, 0.55], [0.3, 0.5, 0.3, 0.9, 0.75]
    found, other = paired_task_change(before, after, [1] * 5), stats.ttest_rel(after, before)
    assert found.p == pytest.approx(other.pvalue)
    assert (found.low, found.high) == pytest.approx(other.confidence_interval())


def test_paired_shares_have_mcnemars_p_value():
    before = [1.0] * 30 + [0.0] * 30
    after = [1.0] * 25 + [0.0] * 5 + [1.0] * 15 + [0.0] * 15
    found = paired_task_change(before, after, [1] * 60)
    assert found.p == pytest.approx(stats.chi2.sf((15 - 5) ** 2 / (15 + 5), 1))
    assert (found.low is not None and found.low > 0) == (found.p < 0.05)


def test_bits_per_byte_weigh_texts_by_their_bytes():
    found = estimate([20.0, 10.0], [10, 2])
    assert found.value == 2.5
    assert paired_task_change([20.0, 10.0], [14.0, 10.0], [10, 2]).change == -0.5


def test_a_single_text_has_no_interval():
    assert (estimate([20.0], [10]).low, paired_task_change([20.0], [10.0], [10]).low) == (None, None)


def test_holm_is_that_of_statsmodels_by_hand():
    # 4 * 0.01, max(0.04, 3 * 0.02), max(0.06, 2 * 0.03), 0.5
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([]) == []


def test_a_difference_of_the_detectable_size_is_found_in_four_of_five_runs():
    chance, n, gained, lost = random.Random(1), 400, 0.16, 0.08
    runs = [
        [chance.choices([(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)], [gained, lost, 1 - gained - lost])[0] for _ in range(n)]
        for _ in range(300)
    ]
    found = [paired_task_change(*map(list, zip(*run, strict=True)), [1] * n) for run in runs]  # type: ignore[arg-type]
    detectable = np.mean([change.detectable for change in found])
    power = np.mean([change.p < 0.05 for change in found])
    # The true difference is 0.08; what is detectable at this spread is about 0.069.
    assert detectable == pytest.approx(0.0686, abs=0.002)
    assert power == pytest.approx(0.9, abs=0.06)


def test_chance_is_zero_and_all_right_is_one():
    assert (centered(0.25, 0.25), centered(1.0, 0.25)) == (0.0, 1.0)
