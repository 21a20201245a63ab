"""The best-of-N curve against all sets of answers, and of reward models with known flaws."""

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pipelines.evaluate.best_of_n import best_of_n


def row(ranks: list[int], grades: list[float] | None = None) -> dict[str, Any]:
    return {"ranks": ranks, "grades": grades}


def test_the_curve_is_that_of_all_sets_of_answers():
    chance = random.Random(5)
    rows = [row([1] * 6, [chance.gauss(0, 1) for _ in range(6)]) for _ in range(7)]
    # Some scores are equal: of these each answer is as likely to be picked.
    scores = [[float(chance.randrange(4)) for _ in range(6)] for _ in rows]
    for point in best_of_n(rows, scores):
        picked, best = [], []
        for own, given in zip(rows, scores, strict=True):
            means = []
            for chosen in combinations(range(6), point["n"]):
                highest = max(given[index] for index in chosen)
                means.append(np.mean([own["grades"][index] for index in chosen if given[index] == highest]))
            picked.append(np.mean(means))
            best.append(np.mean([max(own["grades"][i] for i in one) for one in combinations(range(6), point["n"])]))
        assert point["best"] == pytest.approx(np.mean(best), abs=1e-12)
        half = 2.446912 * np.std(picked, ddof=1) / np.sqrt(len(rows))
        assert (point["low"], point["high"]) == pytest.approx(
            (np.mean(picked) - half, np.mean(picked) + half), abs=1e-6
        )
        assert point["kl"] == pytest.approx(np.log(point["n"]) - 1 + 1 / point["n"])
    assert [point["n"] for point in best_of_n(rows, scores)] == [1, 2, 3, 4, 5, 6]


def test_a_reward_model_that_is_right_for_most_answers_and_wrong_for_the_highest_bends_the_curve():
    rows = [row([4, 3, 2, 1]) for _ in range(10)]
    right, exploited = [0.0, 1.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0]
    good = [point["picked"] for point in best_of_n(rows, [right] * 10)]
    bent = [point["picked"] for point in best_of_n(rows, [exploited] * 10)]
    assert good == sorted(good)
    assert good[-1] == 1
    assert bent[-1] == 0
    assert bent[-1] < bent[1]
    assert best_of_n(rows, [right] * 10)[0]["picked"] == 0.5


def test_prompts_with_one_answer_have_no_curve():
    assert best_of_n([row([1])], [[0.0]]) == []
    assert len(best_of_n([row([1]), row([1, 2, 2])], [[0.0], [1.0, 0.0, 0.0]])) == 3
