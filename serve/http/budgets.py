"""The tokens that keys with a budget have used so far, kept in the run folder across restarts of the server."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cluster.keys import Key, used_tokens
from cluster.run.atomic import make_private, write_json
from serve.errors import RequestError

# The seconds after a request in which the file is written. Tokens used in the last second of a server are forgotten.
WRITE_SECONDS = 1.0


class BudgetError(RequestError):
    """The error of a request that may use more tokens than a key's budget has left.

    Args:
        budget: the whole budget.
        left: the tokens that are left.
        tokens: the most that the request may use.

    Attributes:
        left: the tokens that are left.
    """

    def __init__(self, budget: int, left: int, tokens: int) -> None:
        self.left = max(0, left)
        advice = ": give it a smaller `max_tokens`" if left > 0 else ""
        message = (
            f"of this key's budget of {budget} tokens {self.left} are left, and this request may use {tokens}{advice}"
        )
        super().__init__(429, message, "InsufficientQuotaError")


class TokenBudgets:
    """The budgets of a run's keys.

    A request takes at entry the most that it may use, as for the limits of a minute, so that requests at the same time
    cannot use the rest twice.

    Args:
        folder: the run folder; None to keep nothing across restarts.
        number: the number of the gateway, which has a file of its own.

    Raises:
        UserError: a file is damaged.
    """

    def __init__(self, folder: Path | None, number: int = 0) -> None:
        self._folder, self._path = folder, _file(folder, number) if folder else None
        self._reserved = Counter[str]()
        self._due: asyncio.TimerHandle | None = None
        # The totals of every gateway that this run ever had, by its file.
        self._others: dict[Path, Mapping[str, int]] = dict(used_tokens(folder)) if folder else {}
        own = self._others.pop(self._path, {}) if self._path else {}
        self._used = Counter[str](own)

    def totals(self) -> dict[str, int]:
        """Returns the tokens used and reserved in this gateway, by the keys' hashes."""
        return dict(self._used + self._reserved)

    def merge_peer(self, number: int, totals: Mapping[str, int]) -> None:
        """Replaces the totals of another gateway by its newest report."""
        self._others[_file(self._folder or Path(), number)] = totals

    def used(self, key: Key) -> int:
        """Returns the tokens that a key has used."""
        return self._used[key.digest] + sum(other.get(key.digest, 0) for other in self._others.values())

    def reserve(self, key: Key, tokens: int) -> None:
        """Takes tokens of a key's budget for a request.

        Raises:
            BudgetError: fewer are left.
        """
        if key.token_budget is None:
            return
        left = key.token_budget - self.used(key) - self._reserved[key.digest]
        if left <= 0 or tokens > left:
            raise BudgetError(key.token_budget, left, tokens)
        self._reserved[key.digest] += tokens

    def settle(self, key: Key, reserved: int, used: int) -> None:
        """Replaces a request's reservation by its use."""
        if key.token_budget is None:
            return
        self._reserved[key.digest] -= reserved
        self._used[key.digest] += used
        if self._path and self._due is None:
            self._due = asyncio.get_running_loop().call_later(WRITE_SECONDS, self._write, self._path)

    def _write(self, path: Path) -> None:
        self._due = None
        write_json(path, self._used)
        make_private(path)


def _file(folder: Path, number: int) -> Path:
    return folder / (f"usage-{number}.json" if number else "usage.json")
