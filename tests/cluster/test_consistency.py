"""How reliable a person is, counted by hand."""

import pytest

from cluster.consistency import reliability
from cluster.feedback import GOLD, Ranking, Repeat


def said(prompt: str, who: str, *ranks: int) -> Ranking:
    return Ranking(prompt_id=prompt, labeller=who, ranks={str(key): rank for key, rank in enumerate(ranks)})


def again(prompt: str, who: str, *ranks: int) -> Repeat:
    return Repeat(prompt_id=prompt, labeller=who, ranks={str(key): rank for key, rank in enumerate(ranks)})


def test_gold_counts_the_pairs_it_orders_and_a_tie_is_not_the_order() -> None:
    judgements = [
        said("a", GOLD, 1, 2, 2),
        said("b", GOLD, 1, 2, 3),
        said("a", "ann", 1, 2, 3),
        said("b", "ann", 2, 1, 3),
        said("c", "ann", 1, 2, 3),
        said("a", "ben", 1, 1, 1),
    ]
    ann, ben = reliability(judgements, [])
    assert (ann.labeller, ben.labeller) == ("ann", "ben")
    assert ann.gold
    assert ben.gold
    # Of a, both pairs that gold orders are right; of b, two of three.
    assert ann.gold.value == pytest.approx(4 / 5)
    assert ann.gold.low <= ann.gold.value <= ann.gold.high
    assert (ann.gold_items, ben.gold_items, ben.gold.value) == (2, 1, 0.0)
    assert (ann.consistency, ann.repeats) == (None, 0)


def test_consistency_counts_every_pair_and_ties_agree_with_ties_alone() -> None:
    judgements = [said("a", "ann", 1, 2, 2), said("b", "ann", 1, 2, 3), said("b", "ben", 1, 2, 3)]
    repeats = [again("a", "ann", 1, 2, 3), again("b", "ann", 1, 2, 3), Repeat(prompt_id="b", labeller="ben")]
    ann, ben = reliability(judgements, repeats)
    assert ann.consistency
    assert ann.consistency.value == pytest.approx(5 / 6)
    assert (ann.repeats, ann.gold) == (2, None)
    # Skipped the second time.
    assert (ben.consistency, ben.repeats) == (None, 0)
