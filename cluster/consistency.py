"""How reliable one person is: on items whose right ranking is known, and on prompts that they ranked twice."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.agreement import Estimate, orders
from cluster.feedback.tables import GOLD, Ranking, Repeat

RESAMPLES = 1_000

Ranks = Mapping[str, int]


@dataclass(frozen=True)
class Reliability:
    """One person's, with 95 % intervals by bootstrap over prompts. A figure is None where nothing defines it.

    Attributes:
        labeller: whose.
        gold: share of the pairs that a gold item orders which they order the same way; a tie is not the same.
        gold_items: how many gold items they ranked.
        consistency: share of pairs that they order the same way twice; a tie agrees with a tie alone.
        repeats: how many prompts they ranked twice.
    """

    labeller: str
    gold: Estimate | None
    gold_items: int
    consistency: Estimate | None
    repeats: int


def reliability(judgements: Sequence[Ranking], repeats: Sequence[Repeat], seed: int = 1) -> list[Reliability]:
    """Of everyone in `judgements` but the gold items' own labeller, by name."""
    expected = {row.prompt_id: row.ranks for row in judgements if row.labeller == GOLD}
    said: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for row in judgements:
        if row.ranks and row.labeller != GOLD:
            said[row.labeller][row.prompt_id] = row.ranks
    again: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for repeat in repeats:
        if repeat.ranks:
            again[repeat.labeller][repeat.prompt_id] = repeat.ranks
    found = []
    for name in sorted(said):
        on_gold = [_same(expected[prompt], own, True) for prompt, own in said[name].items() if prompt in expected]
        twice = [_same(own, said[name][prompt], False) for prompt, own in again[name].items() if prompt in said[name]]
        found.append(Reliability(name, _share(on_gold, seed), len(on_gold), _share(twice, seed), len(twice)))
    return found


def _same(right: Ranks, given: Ranks, only_ordered: bool) -> tuple[int, int]:
    """How many pairs of answers both order the same way, of how many."""
    common = sorted(right.keys() & given.keys())
    one, other = (orders([ranks[key] for key in common]) for ranks in (right, given))
    counted = one != 0 if only_ordered else np.ones(len(one), bool)
    return int((counted & (one == other)).sum()), int(counted.sum())


def _share(counts: Sequence[tuple[int, int]], seed: int) -> Estimate | None:
    sums = np.array(counts, float).reshape(-1, 2)
    if not sums[:, 1].sum():
        return None
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    drawn = weights @ sums
    low, high = np.quantile(drawn[drawn[:, 1] > 0, 0] / drawn[drawn[:, 1] > 0, 1], [0.025, 0.975])
    return Estimate(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high))
