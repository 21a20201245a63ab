from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binomtest

from pipelines.evaluate.stats import clustered_proportion, divergence, paired_shares, proportion, share_difference


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 10), (7, 10), (44, 44), (81, 263), (15, 148)])
def test_proportion_has_wilsons_interval(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    found = proportion(hits, n)
    assert found.value == hits / n
    assert found.n == n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_interval_holds_its_share_whatever_the_rounding() -> None:
    for n in range(1, 2000):
        for found in (proportion(0, n), proportion(n, n)):
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_proportion_of_newcombes_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I: 81 of 263, score method.
    found = proportion(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


def test_a_proportion_of_no_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        proportion(0, 0)


def test_an_interval_over_clusters_covers_the_true_share_where_one_over_cases_does_not() -> None:
    chance = np.random.default_rng(1)
    # 40 prompts with six pairs each, whose share of right ones is the prompt's own.
    shares = chance.beta(1.4, 0.6, size=(400, 40))
    right = chance.binomial(6, shares)
    clustered = [clustered_proportion(row.tolist(), [6] * 40) for row in right]
    single = [proportion(int(row.sum()), 240) for row in right]
    covered, naive = (np.mean([found.low <= 0.7 <= found.high for found in every]) for every in (clustered, single))
    assert covered > 0.92
    assert naive < 0.85


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (7, 10), (44, 44), (81, 263)])
def test_clusters_of_one_case_have_the_interval_of_independent_cases(hits: int, n: int) -> None:
    found, expected = clustered_proportion([1] * hits + [0] * (n - hits), [1] * n), proportion(hits, n)
    assert (found.value, found.n) == (expected.value, expected.n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.05, abs=1e-9)


def test_a_single_cluster_or_equal_ones_tell_no_more_than_their_number() -> None:
    assert clustered_proportion([6] * 5, [6] * 5) == replace(proportion(5, 5), n=30)
    assert clustered_proportion([6, 0] * 5, [6] * 10).low == pytest.approx(proportion(5, 10).low, abs=0.02)
    with pytest.raises(ValueError, match="at least one"):
        clustered_proportion([0], [0])


def _pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return before, after


def _score_squared(gained: int, lost: int, n: int, delta: float) -> float:
    """Computes Tango's statistic from its definition: the most likely shares are searched for, not solved for."""
    rest = n - gained - lost

    def minus_log_likelihood(share: float) -> float:
        return -(xlogy(gained, share + delta) + xlogy(lost, share) + xlogy(rest, 1 - 2 * share - delta))

    ends = (max(0.0, -delta), (1 - delta) / 2)
    share = minimize_scalar(minus_log_likelihood, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * delta) ** 2 / (n * (2 * share + delta - delta**2))


@pytest.mark.parametrize(("both", "gained", "lost", "neither"), [(36, 2, 12, 0), (20, 7, 3, 10), (1, 30, 5, 4)])
def test_ends_of_the_paired_interval_have_the_score_of_the_quantile(
    both: int, gained: int, lost: int, neither: int
) -> None:
    found = paired_shares(*_pairs(both, gained, lost, neither))
    assert found.change == pytest.approx((gained - lost) / found.n)
    for end in (found.low, found.high):
        assert _score_squared(gained, lost, found.n, end) == pytest.approx(1.959964**2, rel=1e-4)


@pytest.mark.parametrize("n", [10, 40, 400])
def test_the_paired_interval_excludes_0_where_mcnemars_test_does(n: int) -> None:
    for gained, lost in [(0, 0), (3, 0), (4, 0), (5, 1), (7, 1), (0, 4)]:
        found = paired_shares(*_pairs(n - gained - lost, gained, lost, 0))
        significant = (gained - lost) ** 2 > 1.959964**2 * (gained + lost)
        assert (not found.low <= 0 <= found.high) == significant
    assert found.visible == 4 / n


def test_the_paired_interval_covers_the_true_change_in_95_percent() -> None:
    chance, covered = np.random.default_rng(3), 0
    for _ in range(1000):
        gained, lost, both, neither = map(int, chance.multinomial(60, [0.15, 0.05, 0.6, 0.2]))
        found = paired_shares(*_pairs(both, gained, lost, neither))
        covered += found.low <= 0.1 <= found.high
    assert 0.93 <= covered / 1000 <= 0.98


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


def test_the_difference_of_two_shares_is_newcombes() -> None:
    # Newcombe 1998, table II, contrast (a), method 10: 56 of 70 minus 48 of 80.
    low, high = share_difference(proportion(48, 80), proportion(56, 70))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
