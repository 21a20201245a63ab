"""What the rollout actors of a fleet have done: totals, and who was at what when."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from actors.orchestrator.protocols import Clock
from actors.orchestrator.work_queue import GenerateRequest
from actors.types import Sample
from cluster.trace import Span

# Spans that are kept for whoever asks.
KEPT = 2048

Kind = Literal["start", "weights", "draw"]


@dataclass(frozen=True)
class Counters:
    """What the fleet has done since its start: tokens drawn, seconds that actors were at it, actors that died."""

    tokens: int = 0
    busy_seconds: float = 0.0
    deaths: int = 0


class FleetStats:
    """Kept by the coordinator; a booking costs the same however many actors there are."""

    def __init__(self, clock: Clock) -> None:
        self.counters = Counters()
        self._clock = clock
        self._spans: deque[Span] = deque(maxlen=KEPT)

    def done(self, who: str, kind: Kind, begin: float) -> None:
        """An actor has started, or taken weights."""
        self._spans.append(Span(who, kind, begin, self._clock.now()))

    def drawn(
        self, who: str, begin: float, busy: float, chunk: GenerateRequest, groups: Sequence[Sequence[Sample]]
    ) -> None:
        """An actor has answered prompts; `busy` are the seconds that it was at any since the last booking."""
        end, tokens = self._clock.now(), sum(sample.length for group in groups for sample in group)
        self._spans.append(Span(who, "draw", begin, end, _ids(chunk), tokens))
        before = self.counters
        self.counters = replace(before, tokens=before.tokens + tokens, busy_seconds=before.busy_seconds + busy)

    def lost(self, who: str, kind: Kind, begin: float, chunks: Sequence[GenerateRequest]) -> None:
        """An actor has died, or is given up."""
        ids = tuple(name for chunk in chunks for name in _ids(chunk))
        self._spans.append(Span(who, kind, begin, self._clock.now(), ids, lost=True))
        self.counters = replace(self.counters, deaths=self.counters.deaths + 1)

    def spans(self) -> list[Span]:
        """What was booked since this was last asked; of very much the newest."""
        taken = list(self._spans)
        self._spans.clear()
        return taken


def _ids(chunk: GenerateRequest) -> tuple[str, ...]:
    return tuple(prompt.id for prompt in chunk.prompts)
