"""The tokens that keys with a budget have used so far, kept in the run folder across restarts of the server."""

import asyncio
import json
from collections import Counter
from pathlib import Path

from cluster.errors import UserError
from cluster.keys import Key
from cluster.run.atomic import make_private, write_json
from serve.errors import RequestError

# How soon the file is written after a request. What is used in the last second before the server ends is forgotten.
WRITE_SECONDS = 1.0


class TokenBudgets:
    """The budgets of a run's keys.

    A request takes at entry the most that it may use, as for the limits of a minute, so that requests at the same time
    cannot use the rest twice.

    Args:
        folder: the run folder; None to keep nothing across restarts.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "usage.json" if folder else None
        self._reserved = Counter[str]()
        self._due: asyncio.TimerHandle | None = None
        try:
            used = json.loads(self._path.read_text(encoding="utf-8")) if self._path and self._path.exists() else {}
            self._used = Counter[str]({str(digest): int(tokens) for digest, tokens in used.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self._path} is damaged: {error}; without it, all budgets begin again") from error

    def used(self, key: Key) -> int:
        """Returns the tokens that a key has used."""
        return self._used[key.digest]

    def reserve(self, key: Key, tokens: int) -> None:
        """Takes tokens of a key's budget for a request.

        Raises:
            RequestError: 429, fewer are left.
        """
        if key.token_budget is None:
            return
        left = key.token_budget - self._used[key.digest] - self._reserved[key.digest]
        if left <= 0 or tokens > left:
            message = (
                f"of this key's budget of {key.token_budget} tokens {max(0, left)} are left, and this request may use "
                f"{tokens}"
            )
            raise RequestError(429, message, "InsufficientQuotaError")
        self._reserved[key.digest] += tokens

    def settle(self, key: Key, reserved: int, used: int) -> None:
        """Replaces what was reserved for a request by what it used."""
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
