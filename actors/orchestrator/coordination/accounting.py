"""Counts tokens, busy time and deaths of the rollout actors of a fleet, and records a span for each of their calls."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from actors.orchestrator.coordination.protocols import Clock
from actors.types import Prompt
from cluster.trace import Span

# The newest spans that are kept until they are taken.
MAX_SPANS = 2048

Kind = Literal["start", "weights", "draw"]


@dataclass(frozen=True)
class Counters:
    """Totals since the fleet started.

    Attributes:
        tokens: drawn by all actors.
        busy_seconds: the sum over actors of the time in which they had requests.
        deaths: actors that died or were given up.
    """

    tokens: int = 0
    busy_seconds: float = 0.0
    deaths: int = 0


class FleetStats:
    """Counters and spans of a fleet. An entry costs the same however many actors there are."""

    def __init__(self, clock: Clock) -> None:
        self.counters = Counters()
        self._clock = clock
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)

    def add_call(self, who: str, kind: Kind, begin: float) -> None:
        """Records that an actor has started, or taken weights."""
        self._spans.append(Span(who, kind, begin, self._clock.now()))

    def add_tokens(self, tokens: int, busy: float) -> None:
        """Records that an actor has handed samples over.

        Args:
            tokens: of the samples.
            busy: the seconds in which the actor had any request since its last entry.
        """
        before = self.counters
        self.counters = replace(before, tokens=before.tokens + tokens, busy_seconds=before.busy_seconds + busy)

    def add_request(self, who: str, begin: float, prompts: Sequence[Prompt], tokens: int) -> None:
        """Records that an actor has handed over all samples of a request."""
        self._spans.append(Span(who, "draw", begin, self._clock.now(), _names(prompts), tokens))

    def add_death(self, who: str, kind: Kind, begin: float, prompts: Sequence[Prompt]) -> None:
        """Records that an actor has died or is given up, with the prompts that it had not answered."""
        self._spans.append(Span(who, kind, begin, self._clock.now(), _names(prompts), lost=True))
        self.counters = replace(self.counters, deaths=self.counters.deaths + 1)

    def take_spans(self) -> list[Span]:
        """Removes and returns the spans since the last call, of very many only the newest."""
        taken = list(self._spans)
        self._spans.clear()
        return taken


def _names(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    return tuple(str(prompt.turn) for prompt in prompts)
