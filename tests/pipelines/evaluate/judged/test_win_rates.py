"""Win rates by simulated judges, whose biases are known."""

import random

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from cluster.errors import UserError
from pipelines.evaluate.judged.judge_trust import judge_agreement, require_trusted_judge
from pipelines.evaluate.judged.win_rates import Comparison, judge_report

PROMPTS = 200


def judged(
    chance: random.Random, quality: float = 0.0, longer: float = 0.0, length_bias: float = 0.0, place_bias: float = 0.0
) -> list[Comparison]:
    """Comparisons by a judge: log-odds of the own answer by its quality, the difference in length, and its place."""
    found = []
    for _ in range(PROMPTS):
        length, other = (max(1, round(chance.gauss(mean, 20))) for mean in (100 + longer, 100))
        taste = chance.gauss(0, 1)
        odds = quality + taste + length_bias * (length - other) / 28
        verdicts = [float(chance.random() < expit(odds + place)) for place in (place_bias, -place_bias)]
        found.append(Comparison(verdicts[0], verdicts[1], length, other))
    return found


@pytest.mark.parametrize(("longer", "length_bias"), [(0.0, 0.0), (15.0, 1.0)])
def test_of_two_equal_models_the_length_controlled_win_rate_contains_one_half(longer: float, length_bias: float):
    chance = random.Random(7)
    reports = [judge_report(judged(chance, longer=longer, length_bias=length_bias)) for _ in range(300)]
    covered = np.mean([one.length_controlled.low <= 0.5 <= one.length_controlled.high for one in reports])
    assert covered >= 0.92
    plain = np.mean([one.win_rate.low <= 0.5 <= one.win_rate.high for one in reports])
    # The plain one is fooled by a judge who likes length.
    assert (plain < 0.5) == bool(length_bias)


def test_a_better_model_wins_at_equal_length():
    report = judge_report(judged(random.Random(1), quality=1.0, longer=-15, length_bias=1.0))
    assert report.length_controlled.low > 0.5
    assert report.length_effect > 0


def test_a_judge_that_likes_a_place_is_found_out_and_changes_no_win_rate():
    report = judge_report(judged(random.Random(2), place_bias=3.0))
    assert report.first_place.low > 0.7
    assert report.flips > 0.5
    assert report.win_rate.low < 0.5 < report.win_rate.high
    fair = judge_report(judged(random.Random(2)))
    assert fair.first_place.low < 0.5 < fair.first_place.high


def test_the_regression_is_the_maximum_of_its_likelihood():
    comparisons = judged(random.Random(3), quality=0.4, longer=10, length_bias=0.7)
    scores = np.array([one.score for one in comparisons])
    differences = np.array([one.length - one.other_length for one in comparisons], dtype=float)
    lengths = np.tanh(differences / differences.std())

    def loss(weights: np.ndarray) -> float:
        logits = weights[0] + weights[1] * lengths
        return float(np.sum(np.logaddexp(0, logits) - scores * logits) + 0.5e-2 * weights[1] ** 2)

    best = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    report = judge_report(comparisons)
    assert report.length_controlled.value == pytest.approx(expit(best[0]), abs=1e-5)
    assert report.length_effect == pytest.approx(best[1], abs=1e-4)


def test_ties_and_equal_lengths_have_a_win_rate_too():
    report = judge_report([Comparison(0.5, 0.5, 10, 10)] * 5 + [Comparison(1, 0, 10, 10)] * 5)
    assert (report.win_rate.value, report.length_controlled.value) == (0.5, pytest.approx(0.5))
    assert (report.ties, report.flips) == (1.0, 0.5)
    won = judge_report([Comparison(1, 1, 10, 10)] * 20)
    assert won.length_controlled.value > 0.9
    with pytest.raises(ValueError, match="two prompts"):
        judge_report([Comparison(1, 1, 10, 10)])


def test_a_judge_is_compared_with_people_first():
    people = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]] * 40
    good = judge_agreement([0.75, 0.0, 1.0] * 40, people)
    assert (good.judge.value, good.judge.n, good.people_ties) == (1.0, 80, 40)
    assert good.people is not None
    # Of three votes 1, 1, 0 the last is against the others, and the first two have others that tie.
    assert (good.people.value, good.people.n) == (0.75, 160)
    require_trusted_judge("good", good, [])
    coin = judge_agreement([1.0, 1.0, 1.0] * 40, people)
    with pytest.raises(UserError, match=r"the judge coin agrees with people in 50% of 80 pairs .* people agree in 75%"):
        require_trusted_judge("coin", coin, [])
    require_trusted_judge("coin", coin, ["coin"])
    with pytest.raises(UserError, match="people tie every pair"):
        judge_agreement([1.0], [[0.5, 0.5]])
