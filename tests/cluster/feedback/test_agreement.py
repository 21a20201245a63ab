"""Agreement against published figures and SciPy, and reliability against counts by hand."""

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata

from cluster.feedback import GOLD, Ranking, Repeat
from cluster.feedback.agreement import agreement, ordinal_alpha, reliability

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers; 0 is missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def coincidences(units: Sequence[Sequence[int]], values: int) -> np.ndarray:
    found = np.zeros((values, values))
    for unit in units:
        for one, other in permutations(unit, 2):
            found[one, other] += 1 / (len(unit) - 1)
    return found


def judged(prompts: int, people: int, answers: int, seed: int) -> list[Ranking]:
    """Makes random rankings with ties, more alike than chance; not everybody ranks everything."""
    chance = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        truth = chance.normal(size=answers)
        for person in range(people):
            if chance.random() < 0.2:
                continue
            ranks = rankdata(np.round(truth + chance.normal(size=answers)), "dense")
            keyed = {str(answer): int(rank) for answer, rank in enumerate(ranks)}
            rows.append(Ranking(prompt_id=str(prompt), annotator=f"person {person}", ranks=keyed, seconds=person + 1))
    return rows


def ranked(prompt: str, who: str, *ranks: int) -> Ranking:
    return Ranking(prompt_id=prompt, annotator=who, ranks={str(key): rank for key, rank in enumerate(ranks)})


def repeated(prompt: str, who: str, *ranks: int) -> Repeat:
    return Repeat(prompt_id=prompt, annotator=who, ranks={str(key): rank for key, rank in enumerate(ranks)})


def test_alpha_of_krippendorffs_example_is_the_published_one() -> None:
    units = [[value - 1 for value in unit if value] for unit in zip(*OBSERVERS, strict=True)]
    found = ordinal_alpha(coincidences([unit for unit in units if len(unit) > 1], 5))
    assert round(float(found), 3) == 0.815


def test_tau_equals_scipy_and_other_figures_a_direct_count() -> None:
    rows = judged(prompts=60, people=3, answers=4, seed=1)
    said: dict[str, list[list[int]]] = {}
    for row in rows:
        said.setdefault(row.prompt_id, []).append(list(row.ranks.values()))
    taus, same, unanimous = [], [], []
    for ranks in (ranks for ranks in said.values() if len(ranks) > 1):
        pairs = list(combinations(ranks, 2))
        taus += [kendalltau(one, other, variant="b").statistic for one, other in pairs]
        same += [
            np.sign(one[i] - one[j]) == np.sign(other[i] - other[j])
            for one, other in pairs
            for i, j in combinations(range(4), 2)
        ]
        unanimous.append(len(set(map(tuple, ranks))) == 1)
    everyone = agreement(rows)[0]
    assert everyone.tau
    assert everyone.pairwise
    assert everyone.unanimous
    assert everyone.tau.value == pytest.approx(np.nanmean(taus))
    assert everyone.pairwise.value == pytest.approx(np.mean(same))
    assert everyone.unanimous.value == pytest.approx(np.mean(unanimous))
    assert everyone.shared == len(unanimous)


def test_alpha_of_rankings_follows_the_definition_on_mid_ranks() -> None:
    rows = judged(prompts=40, people=3, answers=5, seed=2)
    units: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        for answer, rank in enumerate(rankdata(list(row.ranks.values()))):
            units.setdefault((row.prompt_id, answer), []).append(int(2 * rank))
    values = [unit for unit in units.values() if len(unit) > 1]
    # By the definition: distances of all pairs within units against those of all pairs of values.
    pool = [value for unit in values for value in unit]
    counts = {value: pool.count(value) for value in set(pool)}

    def distance(one: int, other: int) -> float:
        low, high = sorted((one, other))
        between = sum(count for value, count in counts.items() if low <= value <= high)
        return (between - (counts[low] + counts[high]) / 2) ** 2

    observed = sum(distance(*pair) / (len(unit) - 1) for unit in values for pair in permutations(unit, 2))
    expected = sum(counts[a] * counts[b] * distance(a, b) for a in counts for b in counts if a != b) / (len(pool) - 1)
    found = agreement(rows)[0].alpha
    assert found
    assert found.value == pytest.approx(1 - observed / expected)


def test_two_annotators_have_the_same_agreement_but_their_own_times() -> None:
    everyone, one, other = agreement(judged(prompts=80, people=2, answers=3, seed=3))
    for person in (one, other):
        assert (person.pairwise, person.tau, person.alpha) == (everyone.pairwise, everyone.tau, everyone.alpha)
    assert (one.seconds, other.seconds) == ((1, 1, 1), (2, 2, 2))


def test_an_annotator_who_guesses_has_a_lower_alpha() -> None:
    rows = judged(prompts=150, people=3, answers=4, seed=4)
    chance = np.random.default_rng(5)
    for row in rows:
        if row.annotator == "person 2":
            row.ranks = {str(answer): int(rank) + 1 for answer, rank in enumerate(chance.permutation(4))}
    everyone, *people = agreement(rows)
    assert everyone.alpha
    good, also_good, guesser = (person.alpha for person in people)
    assert good
    assert also_good
    assert guesser
    assert guesser.high < min(good.low, also_good.low)


@pytest.mark.slow
def test_intervals_cover_the_true_value() -> None:
    held = []
    for seed in range(25):
        rows = [
            Ranking(prompt_id=str(prompt), annotator=name, ranks={"1": rank, "2": 3 - rank})
            for prompt, wrong in enumerate(np.random.default_rng(seed).random(100) < 0.3)
            for name, rank in (("ann", 1), ("ben", 2 if wrong else 1))
        ]
        found = agreement(rows)[0].pairwise
        assert found
        held.append(found.low <= 0.7 <= found.high)
    assert np.mean(held) > 0.8


def test_figures_are_none_without_two_annotators_on_a_prompt() -> None:
    ranks = {"1": 1, "2": 2}
    rows = [Ranking(prompt_id="a", annotator="ann", ranks=ranks), Ranking(prompt_id="b", annotator="ben", ranks=ranks)]
    rows.append(Ranking(prompt_id="a", annotator="ben", skipped="unsure"))
    for found in agreement(rows):
        assert (found.shared, found.pairwise, found.tau, found.alpha, found.unanimous) == (0, None, None, None, None)
    assert agreement([])[0].judged == 0


def test_gold_counts_ordered_pairs_and_ties_as_wrong() -> None:
    judgements = [
        ranked("a", GOLD, 1, 2, 2),
        ranked("b", GOLD, 1, 2, 3),
        ranked("a", "ann", 1, 2, 3),
        ranked("b", "ann", 2, 1, 3),
        ranked("c", "ann", 1, 2, 3),
        ranked("a", "ben", 1, 1, 1),
    ]
    ann, ben = reliability(judgements, [])
    assert (ann.annotator, ben.annotator) == ("ann", "ben")
    assert ann.gold
    assert ben.gold
    # Both pairs of a that gold orders are right, and two of the three of b.
    assert ann.gold.value == pytest.approx(4 / 5)
    assert ann.gold.low <= ann.gold.value <= ann.gold.high
    assert (ann.gold_items, ben.gold_items, ben.gold.value) == (2, 1, 0.0)
    assert (ann.consistency, ann.repeats) == (None, 0)


def test_consistency_counts_all_pairs_and_ties_agree_only_with_ties() -> None:
    judgements = [
        ranked("a", "ann", 1, 2, 2),
        ranked("b", "ann", 1, 2, 3),
        ranked("b", "ben", 1, 2, 3),
    ]
    repeats = [
        repeated("a", "ann", 1, 2, 3),
        repeated("b", "ann", 1, 2, 3),
        Repeat(prompt_id="b", annotator="ben"),
    ]
    ann, ben = reliability(judgements, repeats)
    assert ann.consistency
    assert ann.consistency.value == pytest.approx(5 / 6)
    assert (ann.repeats, ann.gold) == (2, None)
    # Skipped the second time.
    assert (ben.consistency, ben.repeats) == (None, 0)
