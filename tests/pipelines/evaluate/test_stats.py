import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.evaluate.stats import difference, divergence, proportion


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 10), (7, 10), (44, 44), (81, 263), (15, 148)])
def test_proportion_has_wilsons_interval(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = proportion(hits, n)
    assert found.value == hits / n
    assert found.n == n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_proportion_of_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I: 81 of 263, score method.
    found = proportion(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


def test_difference_of_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 873-890, table II: 56 of 70 less 48 of 80, method 10.
    low, high = difference(proportion(48, 80), proportion(56, 70))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_a_proportion_of_no_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        proportion(0, 0)


def test_divergence_is_the_kl_of_two_known_distributions() -> None:
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    samples = np.random.default_rng(0).choice(3, size=(20_000, 2), p=policy)
    found = divergence(np.log(policy)[samples].tolist(), np.log(reference)[samples].tolist())
    exact = float((policy * np.log(policy / reference)).sum())
    assert found["n"] == 20_000
    assert abs(found["value"] - 2 * exact) < 4 * found["standard_error"]
    assert found["per_token"] == pytest.approx(found["value"] / 2)
    ratios = (np.log(policy)[samples] - np.log(reference)[samples]).sum(1)
    assert found["standard_error"] == pytest.approx(ratios.std(ddof=1) / np.sqrt(len(ratios)))
