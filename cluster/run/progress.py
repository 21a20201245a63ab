"""The progress of the stage that a run works on, from the metrics that it has written so far, and its durations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.run.folder import RunFolder
from cluster.run.layout import OPTIONAL_STAGES, STAGES
from cluster.run.metrics import read_metrics
from cluster.run.rounds import round_in_the_making

# The number of last steps over which the seconds a step are averaged.
RECENT_STEPS = 20
# The metrics that are shown, of those that a stage writes.
NOW = ("loss", "reward", "kl", "kl_sequence")


@dataclass(frozen=True)
class Progress:
    """The progress of a stage.

    Attributes:
        stage: the stage's name.
        round: the number of the round that it belongs to.
        step: the number of steps done; None before the first.
        steps: the number of all steps, if it is known.
        left: the seconds that the other steps will take, if that is known.
        figures: the newest of the metrics `NOW`.
    """

    stage: str
    round: int
    step: int | None = None
    steps: int | None = None
    left: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


def progress_of(run: RunFolder) -> Progress | None:
    """Returns the progress of the stage that is begun and not finished; None if there is none."""
    begun = (one for one in (*STAGES, *OPTIONAL_STAGES) if run.partial_fingerprint(one.folder) is not None)
    if (stage := next(begun, None)) is None:
        return None
    number, rows = round_in_the_making(run.root, stage.folder), read_metrics(run.partial(stage.folder))
    if not rows:
        return Progress(stage.name, number)
    steps = next((row["steps"] for row in rows if "steps" in row), None)
    done, pace = rows[-1]["step"] + 1, _seconds_a_step([row["time"] for row in rows[-RECENT_STEPS:]])
    left = pace * (steps - done) if pace is not None and steps else None
    figures = {name: float(rows[-1][name]) for name in NOW if is_number(rows[-1].get(name))}
    return Progress(stage.name, number, done, steps, left, figures)


def is_number(value: object) -> bool:
    """Tells whether a value of a metric is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """Formats seconds in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _seconds_a_step(times: Sequence[float]) -> float | None:
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
