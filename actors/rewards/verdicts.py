"""Sums of verdicts: a verdict is a reward, or a `Failure` if none could be computed, which stays one in every sum."""

from actors.types import Failure, Verdict

# The verdicts on some prompts' samples: [prompts][samples].
Scores = list[list[Verdict]]


def add(total: Verdict, weight: float, verdict: Verdict) -> Verdict:
    """Adds a weighted verdict; a sum with a failure is that failure, the first if there are several."""
    if isinstance(total, Failure):
        return total
    return verdict if isinstance(verdict, Failure) else total + weight * verdict
