"""Who was at what, and when, in the newest steps of RLHF: what the run page draws."""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.run.atomic import write_text

FILE = "trace.json"
STEPS = 3
# More prompts, or work, in a step than anybody looks at only make the page heavy.
MOST = 512


@dataclass(frozen=True)
class Span:
    """What somebody was at.

    Attributes:
        who: "rollout 3", "rewards" or "learner".
        what: "start", "weights" or "draw" of a rollout actor; "reward"; "learn" or "publish" of the learner.
        begin, end: seconds of one clock.
        prompts: the ids of those that it was for.
        tokens: that were drawn.
        lost: whether the actor was lost over it.
    """

    who: str
    what: str
    begin: float
    end: float
    prompts: Sequence[str] = ()
    tokens: int = 0
    lost: bool = False


@dataclass(frozen=True)
class PromptTrace:
    """A prompt of a step: when it was given to the rollout actors, when its answers were handed out, how many tokens
    they have, and how many versions behind the learner's the weights were that drew the oldest."""

    id: str
    given: float
    handed_out: float
    tokens: int
    behind: int


@dataclass(frozen=True)
class ActorStatus:
    """A rollout actor as it stands: its state, and the version of its weights."""

    who: str
    state: str
    version: int


@dataclass
class StepTrace:
    """What happened from `begin` to `end`; `waiting` is how many prompts the actors still had then."""

    step: int
    begin: float
    end: float = 0.0
    waiting: int = 0
    spans: list[Span] = field(default_factory=list)
    prompts: list[PromptTrace] = field(default_factory=list)
    actors: list[ActorStatus] = field(default_factory=list)


class TraceWriter:
    """Keeps the newest steps in the stage's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._steps: deque[StepTrace] = deque(maxlen=STEPS)

    def write(self, trace: StepTrace) -> None:
        """Adds a step, and leaves out the oldest."""
        self._steps.append(trace)
        start = min(step.begin for step in self._steps)
        write_text(self._path, json.dumps([_shown(step, start) for step in self._steps]))


def read_trace(folder: Path) -> list[dict[str, Any]] | None:
    """What `TraceWriter` wrote, if it did: `StepTrace`s whose times count from the first one's begin."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _shown(trace: StepTrace, start: float) -> dict[str, Any]:
    return {
        "step": trace.step,
        "begin": round(trace.begin - start, 4),
        "end": round(trace.end - start, 4),
        "waiting": trace.waiting,
        "spans": _since(trace.spans, start, ("begin", "end")),
        "prompts": _since(trace.prompts, start, ("given", "handed_out")),
        "actors": [asdict(actor) for actor in trace.actors[:MOST]],
    }


def _since(rows: Iterable[Span | PromptTrace], start: float, names: Sequence[str]) -> list[dict[str, Any]]:
    found = [asdict(row) for row in rows][-MOST:]
    return [row | {name: round(row[name] - start, 4) for name in names} for row in found]
