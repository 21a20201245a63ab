"""Metrics of the steps of a stage, and their readers while it works: a progress bar and TensorBoard's event files.

A stage appends one JSON object a step to `metrics.jsonl`, wherever it runs. The command that started it reads that file
and turns it into the bar and the events, so that `metrics.jsonl` stays the one record of a run. The format is
TensorBoard's, because its files need no server and no account, and other trackers import them: `tensorboard --logdir
runs`.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.recipe.base import TrackerName
from cluster.run.atomic import write_text
from cluster.run.trackers import TrackedSteps, ended, start_trackers

# Keys of a line that are not metrics.
NO_METRICS = ("step", "steps", "time")
EVENT_FILES = "events.out.tfevents.*"
# Seconds between two looks at `metrics.jsonl`, and the longest wait for the last one, and for trackers to take it.
FOLLOW_SECONDS = 1.0
LAST_FOLLOW_SECONDS = 5.0
LAST_TRACKERS_SECONDS = 120.0


class MetricsWriter:
    """Appends a line a step to `metrics.jsonl`.

    Args:
        folder: the stage's folder.
        resume_at: the first step to come: lines of this and later steps, from before an interruption, are removed.
        steps: the number of steps in all, if it is known: the first line written holds it.
    """

    def __init__(self, folder: Path, resume_at: int = 0, steps: int | None = None) -> None:
        self._steps = steps
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] < resume_at]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, **values: Any) -> None:
        """Appends one line: the step, the time in seconds since 1970, and the values."""
        if self._steps is not None:
            values["steps"], self._steps = self._steps, None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads all complete lines of `metrics.jsonl`, in order; a line that a kill cut short is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Stopwatch:
    """Measures the seconds between laps."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()

    def lap(self) -> float:
        """Returns the seconds since the last lap, or since the start."""
        now = self._now()
        seconds, self._last = now - self._last, now
        return seconds


class TensorBoardWriter:
    """Writes rows of metrics to TensorBoard event files beside `metrics.jsonl`; earlier event files are replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[tuple[int, float]] = []
        self._begin()

    def follow(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows that are new; all rows anew if a resumed stage has removed some that were written."""
        known = len(self._written)
        if [_row_key(row) for row in rows[:known]] != self._written:
            self.close()
            self._written, known = [], 0
            self._begin()
        for row in rows[known:]:
            self._add(row)
            self._written.append(_row_key(row))
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._events.close()

    def _begin(self) -> None:
        # Imported late: it takes half a second, and few commands write events.
        from tensorboardX import SummaryWriter

        for file in self._folder.glob(EVENT_FILES):
            file.unlink()
        self._events = SummaryWriter(str(self._folder))

    def _add(self, row: Mapping[str, Any]) -> None:
        step, seconds = _row_key(row)
        for name, value in row.items():
            if isinstance(value, int | float) and name not in NO_METRICS:
                self._events.add_scalar(name, value, step, walltime=seconds)
        if row.get("samples"):
            texts = [f"**{sample['given']}**\n\n{sample['written']}" for sample in row["samples"]]
            self._events.add_text("samples", "\n\n---\n\n".join(texts), step, walltime=seconds)


@contextmanager
def metrics_progress(folder: Path, steps: int, title: str, trackers: Sequence[TrackerName] = ()) -> Iterator[Console]:
    """Follows the metrics of a stage until the block ends, with a progress bar, TensorBoard events and trackers.

    Args:
        folder: the stage's folder.
        steps: the number of steps in all.
        title: the text before the bar; the last loss is shown behind it.
        trackers: names of trackers that get the metrics too; a stage that goes on sends the steps before once more, to
            a new run there.

    Yields:
        a console that prints above the bar.

    Raises:
        UserError: a tracker's client is not installed, or it starts no run.
    """
    stop = threading.Event()
    started = start_trackers(trackers, folder)
    tracked = TrackedSteps(started)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figure]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=steps, figure="")

        def follow() -> None:
            # Ended here, where the last steps are sent, and not while they are.
            with ended(started), closing(TensorBoardWriter(folder)) as events:
                while True:
                    finished = stop.wait(FOLLOW_SECONDS)
                    if rows := read_metrics(folder):
                        last = rows[-1]
                        figure = f"loss {last['loss']:.3f}" if "loss" in last else ""
                        progress.update(task, completed=last["step"] + 1, figure=figure)
                        events.follow(rows)
                        for failure in tracked.follow(rows):
                            progress.console.print(failure, markup=False, highlight=False)
                    if finished:
                        return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield progress.console
        finally:
            stop.set()
            thread.join(LAST_TRACKERS_SECONDS if started else LAST_FOLLOW_SECONDS)


def _row_key(row: Mapping[str, Any]) -> tuple[int, float]:
    return row["step"], row["time"]
