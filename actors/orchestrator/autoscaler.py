"""Computes how many rollout and reward actors keep the learner busy: advice for people, and automatic sizing."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

# A learner that waits a smaller share of the time is busy: the rest is the time in which weights are transferred.
WAITING_SHARE = 0.1
# Steps whose mean decides a change: lengths of samples vary from one step to the next.
WINDOW = 5
# An estimate from few steps errs: a smaller share of actors too many is left, and the number at most doubles at once.
SPARE_SHARE = 0.25
GROWTH = 2


def balanced(learner_idle: float, rollout_idle: float, actors: int) -> int:
    """Returns the number of rollout actors that draw a batch in the time that the learner needs for one.

    Every actor is taken to have cores of its own.

    Args:
        learner_idle: the share of the time in which the learner waited.
        rollout_idle: the share of the time in which the average rollout actor waited.
        actors: the number of rollout actors.
    """
    work = actors * (1 - rollout_idle)
    return max(1, math.ceil(work if learner_idle < WAITING_SHARE else work / max(1 - learner_idle, 0.01)))


def advice(learner_idle: float, rollout_idle: float, actors: int, max_staleness: int) -> str | None:
    """Says in one line what would make the run faster, or returns None if the learner hardly waits.

    Args:
        learner_idle, rollout_idle, actors: as `balanced` takes them.
        max_staleness: the recipe's.
    """
    needed = balanced(learner_idle, rollout_idle, actors)
    if learner_idle < WAITING_SHARE:
        if needed == actors:
            return None
        return f"the rollout actors waited {rollout_idle:.0%} of the time: {needed} of {actors} would do"
    waited = f"the learner waited {learner_idle:.0%} of the time"
    if max_staleness == 0 and rollout_idle > WAITING_SHARE:
        # On the same two cores, both at once took 84 s where one after the other took 72.
        both = "rlhf.fleet.max_staleness=1 lets both work at once, which pays if they share no cores"
        return f"{waited} and the rollout actors {rollout_idle:.0%}: {both}"
    return f"{waited}: add {needed - actors} rollout actors" if needed > actors else None


def rollout_actors_needed(metrics: Mapping[str, float], actors: int) -> int:
    """Returns `balanced` for the metrics of a step."""
    return balanced(metrics["learner_idle"], metrics["rollout_idle"], actors)


def reward_actors_needed(metrics: Mapping[str, float], actors: int) -> int:
    """Returns the number of reward actors with which a step waits for rewards for at most WAITING_SHARE of its time."""
    return max(1, math.ceil(actors * metrics["reward_seconds"] / metrics["step_seconds"] / WAITING_SHARE))


class Scaler:
    """Decides the number of actors from the metrics of steps, between two bounds.

    Args:
        least, most: the bounds.
        needed: computes the number from metrics, which are means over a few steps, and the present number.
        names: the metrics that `needed` reads.
    """

    def __init__(
        self, least: int, most: int, needed: Callable[[Mapping[str, float], int], int], names: Sequence[str]
    ) -> None:
        self.least, self.most = least, most
        self._needed, self._names = needed, names
        self._steps: deque[Mapping[str, float]] = deque(maxlen=WINDOW)

    @classmethod
    def of_rollouts(cls, least: int, most: int) -> "Scaler":
        """Makes one for rollout actors, by the idle shares of learner and actors."""
        return cls(least, most, rollout_actors_needed, ("learner_idle", "rollout_idle"))

    @classmethod
    def of_rewards(cls, least: int, most: int) -> "Scaler":
        """Makes one for reward actors, by the share of a step in which rewards are waited for."""
        return cls(least, most, reward_actors_needed, ("reward_seconds", "step_seconds"))

    def wanted(self, metrics: Mapping[str, float], actors: int, settled: bool) -> int | None:
        """Returns the number of actors to change to, or None to keep the present number.

        Only steps count in which all actors worked: while some start or end, the metrics are of neither size.

        Args:
            metrics: of the last step.
            actors: the number of actors after it.
            settled: whether none of them is starting or ending.
        """
        if not settled or not self.least <= actors <= self.most:
            self._steps.clear()
            return None
        self._steps.append(metrics)
        if len(self._steps) < WINDOW:
            return None
        means = {name: sum(step[name] for step in self._steps) / WINDOW for name in self._names}
        needed = min(max(self._needed(means, actors), self.least), self.most, GROWTH * actors)
        if actors * (1 - SPARE_SHARE) < needed <= actors:
            return None
        self._steps.clear()
        return needed
