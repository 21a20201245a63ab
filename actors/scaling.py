"""How many rollout actors keep the learner at work: what a run advises, and how a fleet sizes itself."""

import math
from collections import deque
from collections.abc import Mapping, Sequence

from actors.roster import ActorState

# A learner that waits less than this is busy: what is left is the time of the weights on their way.
WAITING_SHARE = 0.1
# Steps that a change of the fleet rests on: lengths of samples vary from one to the next.
WINDOW = 5
# An estimate from few steps errs: fewer than so many actors too many stay, and the fleet at most doubles at once.
SPARE_SHARE = 0.25
GROWTH = 2
# At their prompts, or at the weights in between.
WORKING = {ActorState.READY, ActorState.STALE}


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
        return f"{waited} and the rollout actors {rollout_idle:.0%}: rlhf.max_staleness=1 has both work at once"
    return f"{waited}: add {needed - actors} rollout actors" if needed > actors else None


class Scaler:
    """Sizes a fleet by the measured idle shares, between two bounds."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self._idle: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def wanted(self, figures: Mapping[str, float], states: Sequence[ActorState]) -> int | None:
        """How many actors there should be, or None to leave the fleet as it is.

        A step counts if all actors worked in it: while some start or go, the shares are of neither size.

        Args:
            figures: `learner_idle` and `rollout_idle` of the step that is done.
            states: of the actors after it.
        """
        actors = len(states)
        if not WORKING.issuperset(states) or not self.least <= actors <= self.most:
            self._idle.clear()
            return None
        self._idle.append((figures["learner_idle"], figures["rollout_idle"]))
        if len(self._idle) < WINDOW:
            return None
        learner_idle, rollout_idle = (sum(shares) / WINDOW for shares in zip(*self._idle, strict=True))
        needed = min(max(balanced(learner_idle, rollout_idle, actors), self.least), self.most, GROWTH * actors)
        if actors * (1 - SPARE_SHARE) < needed <= actors:
            return None
        self._idle.clear()
        return needed
