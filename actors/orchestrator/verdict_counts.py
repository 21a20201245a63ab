"""Counts verdicts on samples, and stops a run in which too many of them fail."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from actors.types import Failure, Verdict
from cluster.errors import StageError

# The verdicts whose share of failures is limited.
WINDOW = 1000
# At the start, and in small runs, the share is of at least so many: the first failure of all is no trend.
LEAST = 200


class VerdictCounts:
    """Numbers of verdicts, and of those that failed. The ledger saves them with the learner's checkpoint.

    Attributes:
        given: verdicts on samples, with those that failed.
        failed: those that failed.
        last: the last failure, in words.
    """

    def __init__(self) -> None:
        self.given = self.failed = 0
        self.last: str | None = None
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def add(self, verdicts: Iterable[Verdict]) -> int:
        """Counts verdicts, and returns how many of these failed."""
        reasons = [verdict.reason if isinstance(verdict, Failure) else None for verdict in verdicts]
        self._recent.extend(reason is not None for reason in reasons)
        failures = [reason for reason in reasons if reason is not None]
        self.given, self.failed = self.given + len(reasons), self.failed + len(failures)
        self.last = failures[-1] if failures else self.last
        return len(failures)

    def check(self, limit: float) -> None:
        """Raises a StageError, with the last failure's own words, if more than this share of the newest failed."""
        failed, newest = sum(self._recent), len(self._recent)
        if failed > limit * max(newest, LEAST):
            raise StageError(
                f"{failed} of the last {newest} answers got no reward, a larger share than rlhf.max_failed_verdicts "
                f"({limit:g}) allows; the last: {self.last}"
            )

    def remark(self) -> str | None:
        """Says in one line how many verdicts failed, and how the last did; None if none did."""
        if not self.failed:
            return None
        return f"{self.failed:,} of {self.given:,} answers got no reward and were left out; the last: {self.last}"

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        recent = "".join(str(int(failed)) for failed in self._recent)
        return {"given": self.given, "failed": self.failed, "last_failure": self.last, "recent": recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.given, self.failed, self.last = state["given"], state["failed"], state["last_failure"]
        self._recent = deque((mark == "1" for mark in state["recent"]), maxlen=WINDOW)
