"""The tasks of the label page: which prompt an annotator judges next."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from cluster.feedback import Feedback

# How long a prompt is reserved for a person. Afterwards another may get it too, and both judgements count.
HOLD_SECONDS = 30 * 60.0
# The shares of a person's prompts with a known right ranking (gold items), and of those that they have ranked before;
# the latter are at least so many judgements old.
GOLD_SHARE = 0.1
REPEAT_SHARE = 0.05
REPEAT_AFTER = 10


@dataclass(frozen=True)
class LabelTask:
    """The id of a prompt to judge, and whether its annotator has judged it before."""

    prompt: str
    again: bool = False


class TaskAssigner:
    """Assigns prompts to annotators: two who ask at once get different prompts while there are enough.

    Gold items and repeats are mixed in. Whether one is due depends only on the annotator and on how many prompts they
    have judged, so that neither a reload nor a restart skips it.

    Args:
        database: the prompts and judgements.
        people: how many annotators shall judge each prompt.
    """

    def __init__(self, database: Feedback, people: int) -> None:
        self._database, self._people = database, people
        self._reserved: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def next_task(self, annotator: str, done: int) -> tuple[LabelTask | None, int]:
        """Returns an annotator's next task, the same until it is judged, or None; and the number of open prompts.

        A restart loses the reservations; the order of prompts then gives most annotators the same ones again.

        Args:
            annotator: the annotator's name.
            done: how many prompts they have judged.
        """
        with self._lock:
            now = time.monotonic()
            self._reserved = {name: one for name, one in self._reserved.items() if one[1] > now}
            others = Counter(prompt for name, (prompt, _) in self._reserved.items() if name != annotator)
            tasks = self._database.open_tasks(annotator, self._people)
            free = [name for name, judged in tasks if judged + others[name] < self._people]
            mine = self._reserved.pop(annotator, ("", 0.0))[0]
            chosen = mine if mine in free else next(iter(free), None)
            if chosen is not None:
                self._reserved[annotator] = (chosen, now + HOLD_SECONDS)
        check = self._check(annotator, done) if chosen is not None else None
        return check or (LabelTask(chosen) if chosen is not None else None), len(free)

    def _check(self, annotator: str, done: int) -> LabelTask | None:
        rng = random.Random(f"check {annotator} {done}")
        kind = rng.random()
        if kind < GOLD_SHARE and (gold := self._database.gold_tasks(annotator)):
            return LabelTask(rng.choice(gold))
        if kind > 1 - REPEAT_SHARE and (own := self._database.repeatable_tasks(annotator, REPEAT_AFTER)):
            return LabelTask(own[0], again=True)
        return None
