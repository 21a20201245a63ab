"""The best-of-N curve of a reward model: the quality of the answer that it picks of N, by the annotators' ranking."""

import math
from collections.abc import Iterator, Sequence

from pipelines.evaluate.reward_probes import Row
from pipelines.evaluate.tasks.statistics import estimate


def best_of_n(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> list[Row]:
    """Computes the expected quality of the best of n answers by score, for n up to the fewest answers of a prompt.

    It is exact over all sets of n of a prompt's answers (Nakano et al. 2021, WebGPT, appendix I), and its divergence
    from the model that wrote them is log n - (n - 1) / n nats (Stiennon et al. 2020, appendix G.3).

    Args:
        rows: N rows of rankings.parquet; the quality of an answer is its grade without noise where there are grades,
            else the share of the other answers that it is ranked above, a tie counting half.
        scores: [N][K], the reward model's scores of each row's answers.

    Returns:
        For each n: `n`, `kl`, the mean quality `picked` by the reward model with the ends `low` and `high` of its 95 %
        interval over prompts (None for one prompt), the `best` of n, and the `prompts`; empty without rows of two
        answers. Where the curve bends down, a policy that follows the rewards further gets worse.
    """
    found = [(_qualities(row), list(own)) for row, own in zip(rows, scores, strict=True) if len(own) > 1]
    if not found:
        return []
    return [_point(n, found) for n in range(1, min(len(own) for _, own in found) + 1)]


def _point(n: int, rows: Sequence[tuple[list[float], list[float]]]) -> Row:
    picked = estimate([_expected(quality, scores, n) for quality, scores in rows], [1] * len(rows))
    best = [_expected(quality, quality, n) for quality, _ in rows]
    return {
        "n": n,
        "kl": math.log(n) - (n - 1) / n,
        "picked": picked.value,
        "low": picked.low,
        "high": picked.high,
        "best": sum(best) / len(best),
        "prompts": len(rows),
    }


def _expected(quality: Sequence[float], scores: Sequence[float], n: int) -> float:
    """Computes the mean quality, over all sets of n answers, of the one with the highest score; of equal scores, of
    them all."""
    count, total = len(scores), 0.0
    for place, value in enumerate(_by_score(quality, scores)):
        # The answer at this place is the highest of a set if the other n - 1 are below it.
        total += value * math.comb(place, n - 1)
    return total / math.comb(count, n)


def _by_score(quality: Sequence[float], scores: Sequence[float]) -> Iterator[float]:
    for score in sorted(scores):
        equal = [value for value, own in zip(quality, scores, strict=True) if own == score]
        yield sum(equal) / len(equal)


def _qualities(row: Row) -> list[float]:
    if row["grades"] is not None:
        return [float(grade) for grade in row["grades"]]
    ranks = row["ranks"]
    return [
        sum((other > own) + 0.5 * (other == own) for n, other in enumerate(ranks) if n != place) / (len(ranks) - 1)
        for place, own in enumerate(ranks)
    ]
