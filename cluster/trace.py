"""Timelines of the newest RLHF steps, as the run page draws them: the work of actors and the way of prompts."""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.run.atomic import write_text

FILE = "trace.json"
# Steps that are kept.
STEPS = 3
# The most prompts, spans and actors of a step that are kept: more would only make the page slow.
MOST = 512


@dataclass(frozen=True)
class Span:
    """A piece of work of one actor.

    Attributes:
        who: the actor: "rollout 3", "rewards" or "learner".
        what: the work: "start", "weights" or "draw" of a rollout actor; "reward"; "learn" or "publish" of the learner.
        begin, end: seconds on the clock of the loop.
        prompts: epoch and id of each prompt that it worked on.
        tokens: number of tokens that it generated.
        lost: whether the actor died during it.
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
    """The way of one prompt through a step.

    Attributes:
        id: the epoch and the prompt's id, as in `Span.prompts`.
        given: time at which the rollout actors got it.
        handed_out: time at which its answers were all there and went on to their rewards.
        tokens: number of tokens of its answers.
        behind: staleness of the oldest weights that generated any of them, in versions.
        name: the prompt's full name, for people.
    """

    id: str
    given: float
    handed_out: float
    tokens: int
    behind: int
    name: str = ""


@dataclass(frozen=True)
class ActorStatus:
    """A rollout actor's state, and the version of its weights, at the end of a step."""

    who: str
    state: str
    version: int


@dataclass
class StepTrace:
    """The timeline of one step, from `begin` to `end`; `waiting` prompts were still with rollout actors at its end."""

    step: int
    begin: float
    end: float = 0.0
    waiting: int = 0
    spans: list[Span] = field(default_factory=list)
    prompts: list[PromptTrace] = field(default_factory=list)
    actors: list[ActorStatus] = field(default_factory=list)


class TraceWriter:
    """Writes the newest steps to a file in the stage's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._steps: deque[StepTrace] = deque(maxlen=STEPS)

    def write(self, trace: StepTrace) -> None:
        """Adds a step, in place of the oldest if there are `STEPS` already."""
        self._steps.append(trace)
        start = min(step.begin for step in self._steps)
        write_text(self._path, json.dumps([_to_json(step, start) for step in self._steps]))


def read_trace(folder: Path) -> list[dict[str, Any]] | None:
    """Reads the steps that `TraceWriter` wrote, or None; times are seconds since the first one's `begin`."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _to_json(trace: StepTrace, start: float) -> dict[str, Any]:
    """Turns a step into JSON values, with times relative to `start`."""
    return {
        "step": trace.step,
        "begin": round(trace.begin - start, 4),
        "end": round(trace.end - start, 4),
        "waiting": trace.waiting,
        "spans": _relative_to_start(trace.spans, start, ("begin", "end")),
        "prompts": _relative_to_start(trace.prompts, start, ("given", "handed_out")),
        "actors": [asdict(actor) for actor in trace.actors[:MOST]],
    }


def _relative_to_start(rows: Iterable[Span | PromptTrace], start: float, names: Sequence[str]) -> list[dict[str, Any]]:
    found = [asdict(row) for row in rows][-MOST:]
    return [row | {name: round(row[name] - start, 4) for name in names} for row in found]
