"""Ratings against planted strengths and a closed form, and the control for length."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.special import expit

from cluster.feedback.bradley_terry import MEAN, SCALE, Rating, Vote, ratings

STRENGTHS = np.linspace(-1.2, 1.2, 10)


def votes(seed: int, count: int, ties: float = 0.0, length_effect: float = 0.0) -> list[Vote]:
    """Draws votes by the Bradley-Terry model, with random ties, and an effect of the length of answers."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        first, second = chance.choice(len(STRENGTHS), 2, replace=False)
        # Stronger models write more, so length must be told apart from strength.
        lengths = [int(100 * math.exp(0.4 * STRENGTHS[model] + chance.normal(0, 0.5))) for model in (first, second)]
        longer = (lengths[0] - lengths[1]) / sum(lengths)
        wins = chance.random() < expit(STRENGTHS[first] - STRENGTHS[second] + length_effect * longer)
        won = 0.5 if chance.random() < ties else float(wins)
        found.append(Vote((f"m{first}", f"m{second}"), won, (lengths[0], lengths[1])))
    return found


def ballots(cast: list[Vote]) -> list[list[Vote]]:
    return [[vote] for vote in cast]


def values(found: list[Rating]) -> dict[str, float]:
    return {rating.model: rating.value for rating in found}


def test_two_models_have_the_log_odds_of_their_share_of_wins() -> None:
    cast = (
        [Vote(("a", "b"), 1, (1, 1))] * 60 + [Vote(("b", "a"), 1, (1, 1))] * 20 + [Vote(("a", "b"), 0.5, (1, 1))] * 20
    )
    found = ratings(ballots(cast))
    assert [rating.model for rating in found.models] == ["a", "b"]
    assert [rating.votes for rating in found.models] == [100, 100]
    # 70 of 100 points: the odds of 7 to 3, less what the wide prior takes.
    gap = values(found.models)["a"] - values(found.models)["b"]
    assert gap == pytest.approx(400 * math.log10(7 / 3), rel=1e-3)
    assert sum(values(found.models).values()) == pytest.approx(2 * MEAN)
    assert all(rating.low < rating.value < rating.high for rating in found.models)
    # The deviation of a log-odds is 1 / sqrt(n p q); votes that tie vary less.
    wide = (found.models[0].high - found.models[0].low) / SCALE
    assert 0.6 < wide / (2 * 1.96 * math.sqrt(0.16 / 100) / 0.21 / 2) < 1.4


@pytest.mark.slow
def test_planted_strengths_are_recovered_and_the_intervals_cover_them() -> None:
    inside = []
    for seed in range(30):
        found = ratings(ballots(votes(seed, 1_500)), resamples=100, seed=seed)
        for rating in found.models:
            truth = MEAN + SCALE * STRENGTHS[int(rating.model[1:])]
            inside.append(rating.low <= truth <= rating.high)
            assert abs(rating.value - truth) < 120
        assert {found.models[0].model, found.models[1].model} <= {"m7", "m8", "m9"}
    # 300 intervals of 95 %: a share outside of this has less than one chance in a thousand.
    assert 0.90 < np.mean(inside) < 0.99


def test_control_for_length_removes_the_effect_of_length() -> None:
    cast = ballots(votes(1, 6_000, length_effect=2.0))
    raw, controlled = ratings(cast, resamples=20), ratings(cast, control_length=True, resamples=20)
    truth = {f"m{index}": MEAN + SCALE * strength for index, strength in enumerate(STRENGTHS)}

    def error(found: list[Rating]) -> float:
        return max(abs(value - truth[name]) for name, value in values(found).items())

    assert raw.length is None
    assert controlled.length
    value, low, high = controlled.length
    assert low < SCALE * 2.0 < high
    assert low < value < high
    assert error(controlled.models) < 40 < error(raw.models)


def test_a_model_that_never_lost_has_a_finite_rating_and_no_votes_give_none() -> None:
    found = ratings(ballots([Vote(("a", "b"), 1, (5, 5))] * 8))
    assert all(math.isfinite(number) for r in found.models for number in (r.value, r.low, r.high))
    assert ratings([]).models == []
    assert ratings([], control_length=True).models == []


def test_votes_of_one_ballot_are_resampled_together() -> None:
    # Everyone who ranks three models gives three votes that agree with each other.
    orders = [("a", "b", "c")] * 24 + [("c", "b", "a")] * 16
    ranked = [[Vote(pair, 1, (1, 1)) for pair in combinations(order, 2)] for order in orders]
    together, apart = ratings(ranked), ratings([[vote] for ballot in ranked for vote in ballot])
    assert values(together.models) == pytest.approx(values(apart.models))
    assert [rating.votes for rating in together.models] == [40] * 3
    wide = [found.models[0].high - found.models[0].low for found in (together, apart)]
    assert wide[0] > 1.3 * wide[1]
