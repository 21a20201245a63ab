"""How strong models are, from votes between two of them: Bradley and Terry's model, with intervals.

P(a beats b) = 1 / (1 + 10^((rating_b - rating_a) / 400)), the scale of chess (Elo 1978). A tie is half a win each way.
A ballot that ranks more than two models is the votes between all its pairs. Intervals are percentiles of a bootstrap
over ballots (Chiang et al. 2024, Chatbot Arena, over votes): the votes of one ballot depend on each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit

RESAMPLES = 200
SCALE = 400 / math.log(10)
MEAN = 1_000.0
# A model that never lost would be infinitely strong: every strength is pulled towards the mean by a normal prior, wide
# enough (deviation 10 on the scale of logits, 4,343 points) that it decides nothing else.
PRIOR = 1 / 10**2
NEWTON_STEPS = 100
# Far from the optimum the loss is nearly flat, and Newton's step too long.
LONGEST_STEP = 2.0
CONVERGED = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Vote:
    """What one person said of two answers.

    Attributes:
        models: which gave the first answer and the second.
        won: 1 if the first is better, 0 if the second is, 0.5 if they tie.
        lengths: characters of the two answers.
    """

    models: tuple[str, str]
    won: float
    lengths: tuple[int, int]


@dataclass(frozen=True)
class Rating:
    """A model's strength with its 95 % interval; all models together have mean 1000. `votes`: ballots it was on."""

    model: str
    value: float
    low: float
    high: float
    votes: int


@dataclass(frozen=True)
class Ratings:
    """The ratings, best first, and what length was worth.

    Attributes:
        models: best first.
        length: with control for length, the points that an answer gains which is all of the text shown against one
            that is none of it, with its interval; None without control.
    """

    models: list[Rating]
    length: tuple[float, float, float] | None


def ratings(
    ballots: Sequence[Sequence[Vote]], control_length: bool = False, resamples: int = RESAMPLES, seed: int = 1
) -> Ratings:
    """Fits the strengths.

    Args:
        ballots: what people said, each time one vote or all pairs of a ranking; models that no chain of votes connects
            are not comparable, whatever the numbers say.
        control_length: whether the share that an answer has in the length of both explains part of the votes (the
            control of Dubois et al. 2024 and Chatbot Arena): the ratings are then those of answers of equal length.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    votes = [vote for ballot in ballots for vote in ballot]
    names = sorted({name for vote in votes for name in vote.models})
    if not names:
        return Ratings([], None)
    rows, won = _design(votes, names, control_length)
    # Votes that say the same are one row with a count: the bootstrap then costs what the different ones do.
    rows, inverse = np.unique(np.column_stack([rows, won]), axis=0, return_inverse=True)
    ballot = np.repeat(np.arange(len(ballots)), [len(ballot) for ballot in ballots])
    held = csr_array((np.ones(len(votes)), (ballot, inverse.ravel())), shape=(len(ballots), len(rows)))
    (best,) = _fit(rows, held.sum(0)[None])
    chance, even = np.random.default_rng(seed), np.full(len(ballots), 1 / len(ballots))
    drawn = np.stack([chance.multinomial(len(ballots), even) @ held for _ in range(resamples)])
    low, high = np.quantile(_fit(rows, drawn), [0.025, 0.975], axis=0)
    found = [
        Rating(
            name,
            MEAN + SCALE * float(best[index]),
            MEAN + SCALE * float(low[index]),
            MEAN + SCALE * float(high[index]),
            sum(any(name in vote.models for vote in ballot) for ballot in ballots),
        )
        for index, name in enumerate(names)
    ]
    length = (SCALE * float(best[-1]), SCALE * float(low[-1]), SCALE * float(high[-1])) if control_length else None
    return Ratings(sorted(found, key=lambda rating: -rating.value), length)


def _design(votes: Sequence[Vote], names: list[str], control_length: bool) -> tuple[Floats, Floats]:
    """One row a vote: 1 for the first model, -1 for the second, and how much longer the first answer is, -1 to 1."""
    rows = np.zeros((len(votes), len(names) + control_length))
    for row, vote in zip(rows, votes, strict=True):
        row[names.index(vote.models[0])] += 1
        row[names.index(vote.models[1])] -= 1
        if control_length:
            row[-1] = (vote.lengths[0] - vote.lengths[1]) / max(1, sum(vote.lengths))
    return rows, np.array([vote.won for vote in votes])


def _fit(rows: Floats, counts: Floats) -> Floats:
    """The strengths, on the scale of logits, of the highest posterior, by Newton's method on all samples at once.

    Args:
        rows: V x (M + 1), the design and, last, what the first answer won.
        counts: R x V, how often each row is in each sample.

    Returns:
        R x M. The prior alone decides their mean: it is zero.
    """
    design, won = rows[:, :-1], rows[:, -1]
    size = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    strengths = np.zeros((len(counts), size))
    for _ in range(NEWTON_STEPS):
        wins = expit(strengths @ design.T)
        gradient = (counts * (wins - won)) @ design + PRIOR * strengths
        curvature = ((counts * wins * (1 - wins)) @ products).reshape(-1, size, size) + PRIOR * np.eye(size)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        strengths -= np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max() < CONVERGED:
            break
    return strengths
