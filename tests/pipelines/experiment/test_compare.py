"""The interval of the difference of two variants, over models and documents."""

import numpy as np
import pytest
from scipy import stats

from pipelines.experiment.compare import compare

SIZES = np.array([100, 300, 200, 400])


def test_models_that_agree_leave_the_interval_over_documents() -> None:
    """Of documents of one size that is Student's t interval of the bits a byte."""
    sizes = np.full(4, 250)
    baseline = np.tile([200.0, 500.0, 450.0, 800.0], (3, 1))
    change = np.array([-20.0, -31.0, -12.0, -47.0])
    found = compare(baseline, baseline + change, sizes, variants=1)
    low, high = stats.t.interval(0.95, 3, (change / 250).mean(), stats.sem(change / 250))
    assert (found.change, found.low, found.high) == pytest.approx(((change / 250).mean(), low, high))
    assert found.verdict == "better"


def test_documents_that_agree_leave_the_interval_over_models() -> None:
    baseline = np.outer([1.0, 1.0, 1.0], SIZES)
    change = np.array([0.05, 0.08, 0.02])
    found = compare(baseline, baseline + np.outer(change, SIZES), SIZES, variants=1)
    low, high = stats.t.interval(0.95, 2, change.mean(), stats.sem(change))
    assert (found.change, found.low, found.high) == pytest.approx((0.05, low, high))
    assert found.bits == pytest.approx(1.05)
    assert found.verdict == "not told apart"
    more = compare(baseline, baseline + np.outer(change, SIZES), SIZES, variants=2)
    assert more.high - more.change == pytest.approx(stats.t.ppf(0.9875, 2) * stats.sem(change))


def test_fewer_bits_are_better_and_more_are_worse() -> None:
    baseline = np.outer([1.0, 1.01], SIZES)
    assert compare(baseline, baseline * 0.8, SIZES, 1).verdict == "better"
    assert compare(baseline * 0.8, baseline, SIZES, 1).verdict == "worse"
    assert compare(baseline, baseline, SIZES, 1).verdict == "not told apart"


@pytest.mark.parametrize(("of_models", "of_documents", "of_both"), [(1.0, 0.0, 0.1), (0.0, 1.0, 0.1), (0.4, 1.0, 2.0)])
def test_two_variants_that_are_alike_are_rarely_told_apart(
    of_models: float, of_documents: float, of_both: float
) -> None:
    draw, sizes, wrong = np.random.default_rng(8), np.full(30, 100), 0
    for _ in range(1000):
        noise = draw.normal(0, of_models, (3, 1)) + draw.normal(0, of_documents, 30) + draw.normal(0, of_both, (3, 30))
        wrong += compare(np.zeros((3, 30)), noise, sizes, 1).verdict != "not told apart"
    assert wrong <= 65  # 50 and two standard errors
