"""The audit trail of `triptych loop`: each decision on a round is one line of loop/decisions.jsonl in the run folder.

A round of the loop is open from its line `begin` to its line `end`. A step of a round has one line at most: a step that
has a line is not done again.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.errors import UserError
from cluster.run.atomic import make_private, write_json

Step = Literal["begin", "gates", "compare", "trial", "canary", "end"]
# Decisions after which a round is set aside.
AGAINST = ("stopped", "rolled back")


@dataclass(frozen=True)
class Decision:
    """A decision on a round.

    Attributes:
        round: the number of the round.
        step: the step of the round that was decided.
        decision: the decision in a word or two: passed, stopped, promoted …
        why: the reason in a sentence with its figures.
        figures: the figures as JSON.
        time: the time in seconds since 1970.
    """

    round: int
    step: Step
    decision: str
    why: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.time))
        return f"{when}  round {self.round:<3} {self.step:<8} {self.decision}: {self.why}"


def read_trail(root: Path) -> list[Decision]:
    """Reads all decisions of a run's loop, in order; a last line that a kill cut short counts for nothing.

    Raises:
        UserError: another line is damaged.
    """
    try:
        *lines, _ = _path(root).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    try:
        return [Decision(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise UserError(f"{_path(root)} is damaged ({error}): move it aside, and the loop begins anew") from error


def add_decision(root: Path, decision: Decision) -> None:
    """Appends a decision; it is on the disk when this returns. One process at a time may do so."""
    path = _path(root)
    path.parent.mkdir(exist_ok=True)
    make_private(path)
    with path.open("r+b") as file:
        # Written behind the last whole line, over the part of a line that a kill may have left.
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.seek(whole)
        file.write(json.dumps(asdict(decision), default=str).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def open_round(trail: Sequence[Decision]) -> dict[Step, Decision]:
    """Returns the decisions on the round that is open, by step; empty if none is."""
    if not trail or trail[-1].step == "end":
        return {}
    begun = max(place for place, one in enumerate(trail) if one.step == "begin")
    return {one.step: one for one in trail[begun:]}


@dataclass(frozen=True)
class Approval:
    """A person's approval or refusal of a round, which may come before the round waits for it: `triptych loop RUN
    refuse`."""

    round: int
    approved: bool
    by: str


def answer_open_round(root: Path, approved: bool, by: str, number: int | None = None) -> int:
    """Writes a person's answer to the round in progress, and returns the round's number.

    Args:
        root: the run folder.
        approved: whether its policy may take over; else the round is set aside.
        by: the name of the person who answers.
        number: the round that they were shown; None for whichever is in progress.

    Raises:
        UserError: no round is in progress, another one is, or its policy has not been compared yet.
    """
    steps = open_round(read_trail(root))
    if not steps:
        raise UserError(f"no round of {root} is in progress: `triptych loop {root} status` shows the last ones")
    found = steps["begin"].round
    if number not in (None, found):
        raise UserError(f"round {found} is in progress by now, and not round {number}")
    if approved and "compare" not in steps:
        raise UserError(f"round {found} has not been compared with the live policy yet: approve it afterwards")
    answer_round(root, Approval(found, approved, by))
    return found


def answer_round(root: Path, answer: Approval) -> None:
    """Writes a person's answer to a round."""
    write_json(_answer(root), asdict(answer))


def forget_answer(root: Path) -> None:
    """Removes the answer on a round that has ended."""
    _answer(root).unlink(missing_ok=True)


def read_answer(root: Path, number: int) -> Approval | None:
    """Reads a person's answer to a round; None if there is none.

    Raises:
        UserError: the file with the answer is damaged.
    """
    try:
        found = Approval(**json.loads(_answer(root).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{_answer(root)} is damaged ({error}): answer again") from error
    return found if found.round == number else None


def _path(root: Path) -> Path:
    return root / "loop" / "decisions.jsonl"


def _answer(root: Path) -> Path:
    return root / "loop" / "answer.json"
