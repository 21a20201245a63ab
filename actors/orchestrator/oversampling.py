"""Says how many prompts to draw at once so that about as many as a step needs hold something to learn."""

import math
from collections import deque

# The prompts whose share is taken.
WINDOW = 512
# Prompts that are taken to have held something to learn before any was drawn: a first step draws no more than it needs.
PRIOR = 8
# The most prompts for each that is needed, which bounds what one round costs when nearly all are filtered.
MOST = 4


class Oversampling:
    """Remembers which of the newest prompts held something to learn (dynamic sampling, Yu et al. 2025, section 3.2).

    The ledger saves it with the learner's checkpoint, so that a resumed run draws as many as one that never stopped.
    """

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def add(self, learnable: bool) -> None:
        """Takes in whether the samples of a prompt had different rewards."""
        self._recent.append(learnable)

    @property
    def share(self) -> float:
        """The estimated share of prompts that hold something to learn, above 0."""
        return (sum(self._recent) + PRIOR) / (len(self._recent) + PRIOR)

    def prompts(self, needed: int) -> int:
        """Returns how many prompts to draw so that about `needed` of them hold something to learn."""
        return min(MOST * needed, math.ceil(needed / self.share))

    def state_dict(self) -> str:
        """Returns the whole state as a JSON value."""
        return "".join(str(int(learnable)) for learnable in self._recent)

    def load_state_dict(self, state: str) -> None:
        """Goes on where `state_dict` was called."""
        self._recent = deque((mark == "1" for mark in state), maxlen=WINDOW)
