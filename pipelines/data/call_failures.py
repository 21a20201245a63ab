"""Counts the failed calls of a user's function, and ends the stage when they are too many."""

from cluster.errors import StageError

# The attempts of a call that raises, before it counts as failed. A late call is not repeated.
ATTEMPTS = 3
# The late calls in a row after which the stage ends: a function that hangs would use up the time of every call.
LATE_IN_A_ROW = 8


class CallFailedError(StageError):
    """A user's function failed in every attempt; `late`: it took too long."""

    def __init__(self, message: str, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class CallFailures:
    """Counts failed calls, and raises above a share of all.

    Args:
        total: the number of calls.
        limit: the largest share of them that may fail.
        key: the key of the limit in the recipe.
        unit: the plural of the items that are counted, such as "prompts".
    """

    def __init__(self, total: int, limit: float, key: str, unit: str) -> None:
        self.messages: list[str] = []
        self._total, self._limit, self._key, self._unit = total, limit, key, unit
        self._late_in_a_row = 0

    def add(self, error: CallFailedError) -> None:
        """Notes a failure.

        Raises:
            StageError: it is one too many, or the last `LATE_IN_A_ROW` calls were all late.
        """
        self.messages.append(str(error))
        self._late_in_a_row = self._late_in_a_row + 1 if error.late else 0
        if self._late_in_a_row >= LATE_IN_A_ROW:
            raise StageError(f"{error}, as did each of the last {LATE_IN_A_ROW} calls: it seems to hang") from error
        if len(self.messages) > self._limit * self._total:
            tried = "" if error.late else f"tried {ATTEMPTS} times; "
            raise StageError(
                f"{error} ({tried}{len(self.messages)} of {self._total} {self._unit} failed, and {self._key} allows "
                f"{self._limit:.0%})"
            ) from error

    def passed(self) -> None:
        """Notes a call that did not fail."""
        self._late_in_a_row = 0
