"""How many rollout and reward actors keep the learner at work: what a run advises, and how they are sized."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

# A learner that waits less than this is busy: what is left is the time of the weights on their way.
WAITING_SHARE = 0.1
# Steps that a change of the fleet rests on: lengths of samples vary from one to the next.
WINDOW = 5
# An estimate from few steps errs: fewer than so many actors too many stay, and the fleet at most doubles at once.
SPARE_SHARE = 0.25
GROWTH = 2


def balanced(learner_idle: float, rollout_idle: float, actors: int) -> int:
    """How many actors do the work on a batch in the time that the learner needs, if each has cores of its own.

    Args:
        learner_idle: share of the time in which the learner waited.
        rollout_idle: share of the time in which the average rollout actor did.
        actors: how many there were.
    """
    work = actors * (1 - rollout_idle)
    return max(1, math.ceil(work if learner_idle < WAITING_SHARE else work / max(1 - learner_idle, 0.01)))


def advice(learner_idle: float, rollout_idle: float, actors: int, max_staleness: int) -> str | None:
    """What would make the run faster, in one line, or None if the learner hardly waits; arguments as of `balanced`.

    Args:
        max_staleness: the recipe's.
    """
    needed = balanced(learner_idle, rollout_idle, actors)
    if learner_idle < WAITING_SHARE:
        if needed == actors:
            return None
        return f"the rollout actors waited {rollout_idle:.0%} of the time: {needed} of {actors} would do"
    waited = f"the learner waited {learner_idle:.0%} of the time"
    if max_staleness == 0 and rollout_idle > WAITING_SHARE:
        return f"{waited} and the rollout actors {rollout_idle:.0%}: rlhf.fleet.max_staleness=1 has both work at once"
    return f"{waited}: add {needed - actors} rollout actors" if needed > actors else None


def rollout_actors_needed(figures: Mapping[str, float], actors: int) -> int:
    """`balanced` for the figures of a step."""
    return balanced(figures["learner_idle"], figures["rollout_idle"], actors)


def reward_actors_needed(figures: Mapping[str, float], actors: int) -> int:
    """How many reward actors keep the rewards below a share of a step that is hardly waited for."""
    return max(1, math.ceil(actors * figures["reward_seconds"] / figures["step_seconds"] / WAITING_SHARE))


class Scaler:
    """Sizes a set of actors by measured figures, between two bounds.

    Args:
        least, most: the bounds.
        needed: how many actors there should be, by figures of a step (means over a few are given) and by how many
            there were.
        names: of those figures.
    """

    def __init__(
        self, least: int, most: int, needed: Callable[[Mapping[str, float], int], int], names: Sequence[str]
    ) -> None:
        self.least, self.most = least, most
        self._needed, self._names = needed, names
        self._steps: deque[Mapping[str, float]] = deque(maxlen=WINDOW)

    @classmethod
    def of_rollouts(cls, least: int, most: int) -> "Scaler":
        """By the idle shares."""
        return cls(least, most, rollout_actors_needed, ("learner_idle", "rollout_idle"))

    @classmethod
    def of_rewards(cls, least: int, most: int) -> "Scaler":
        """By the share of a step in which rewards are waited for."""
        return cls(least, most, reward_actors_needed, ("reward_seconds", "step_seconds"))

    def wanted(self, figures: Mapping[str, float], actors: int, settled: bool) -> int | None:
        """How many actors there should be, or None to leave them as they are.

        A step counts if all actors worked in it: while some start or go, its figures are of neither size.

        Args:
            figures: of the step that is done.
            actors: how many there are after it.
            settled: whether all of them are at work.
        """
        if not settled or not self.least <= actors <= self.most:
            self._steps.clear()
            return None
        self._steps.append(figures)
        if len(self._steps) < WINDOW:
            return None
        means = {name: sum(step[name] for step in self._steps) / WINDOW for name in self._names}
        needed = min(max(self._needed(means, actors), self.least), self.most, GROWTH * actors)
        if actors * (1 - SPARE_SHARE) < needed <= actors:
            return None
        self._steps.clear()
        return needed
