"""Decides which finished samples a step trains on, so that none of them ever becomes too stale.

At most (n + 1) batches are in work, where n is the largest staleness. A prompt that was begun with version v has to be
trained on in step v + n at the latest, and a step trains on one batch. So a step that leaves, for any k from 0 to n,
more than k batches of those that are due within the k steps after it, would leave some that cannot be trained on in
time: it waits for answers to older prompts instead. As no step leaves more, none is ever too late (earliest deadline
first, Liu and Layland 1973).
"""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Aged(Protocol):
    """Samples or prompts with the version of the weights that drew them."""

    @property
    def version(self) -> int:
        """The oldest version of the weights that drew any of it."""


Group = TypeVar("Group", bound=Aged)


@dataclass
class Finished(Generic[Group]):
    """Groups of samples that are finished and that no step has trained on."""

    _heap: list[tuple[int, int, Group]] = field(default_factory=list)
    _versions: Counter[int] = field(default_factory=Counter)
    _added: int = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, group: Group) -> None:
        """Adds a group."""
        self._added += 1
        self._versions[group.version] += 1
        heapq.heappush(self._heap, (group.version, self._added, group))

    def take(self, count: int) -> list[Group]:
        """Removes and returns the oldest groups; of those of one version, the ones that finished first."""
        taken = [heapq.heappop(self._heap)[2] for _ in range(count)]
        self._versions.subtract(group.version for group in taken)
        self._versions += Counter()
        return taken

    def may_train(self, count: int, version: int, staleness: int, batch: int, begun: Mapping[int, int]) -> bool:
        """Returns whether a step may take the `count` oldest groups now.

        Args:
            count: prompts that the step takes, at most `batch`.
            version: of the weights before the step.
            staleness: the most versions that a sample may lag behind.
            batch: prompts of a step.
            begun: for each version of the weights, the number of prompts that were begun with it and are not finished.
        """
        if len(self) < count:
            return False
        for steps in range(staleness + 1):
            newest = version + steps - staleness
            finished = sum(number for drawn, number in self._versions.items() if drawn <= newest)
            unfinished = sum(number for drawn, number in begun.items() if drawn <= newest)
            if unfinished + finished - min(count, finished) > steps * batch:
                return False
        return True
