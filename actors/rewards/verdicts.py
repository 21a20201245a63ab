"""Sums and checks of verdicts: a reward that cannot be had is a `Failure`, never a number."""

from collections.abc import Sequence

from actors.types import Failure, Verdict
from cluster.errors import StageError

# The verdicts on some prompts' samples: [prompts][samples].
Scores = list[list[Verdict]]


def add(total: Verdict, weight: float, verdict: Verdict) -> Verdict:
    """Adds a weighted verdict; a sum with a failure is that failure, the first if there are several."""
    if isinstance(total, Failure):
        return total
    return verdict if isinstance(verdict, Failure) else total + weight * verdict


def rewards_of(verdicts: Sequence[Verdict]) -> list[float]:
    """Returns verdicts as rewards.

    Raises:
        StageError: one is a failure.
    """
    rewards = []
    for verdict in verdicts:
        if isinstance(verdict, Failure):
            raise StageError(verdict.reason)
        rewards.append(verdict)
    return rewards
