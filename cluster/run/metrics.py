"""Numbers over the steps of a stage: one JSON object a line in `metrics.jsonl`."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.run.atomic import write_text


class MetricsWriter:
    """Appends a line a step. On resume, lines of steps that will be done again are removed first."""

    def __init__(self, folder: Path, resume_at: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] < resume_at]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, **values: Any) -> None:
        """Adds one line: the step, the wall clock and the values."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `metrics.jsonl`, in order; a line cut short by a kill is left out."""
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
    """Seconds between laps."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = self._now()
        seconds, self._last = now - self._last, now
        return seconds


# The metrics of a run for TensorBoard, and for every tracker that takes in its event files.
#
# TensorBoard because its files need no server and no account while a run works: `tensorboard --logdir runs` at any
# time. They are made of `metrics.jsonl`, which stays what a run goes by.
FILES = "events.out.tfevents.*"


class EventWriter:
    """Writes rows of metrics into event files beside them. What lies there from before a resume is made anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[tuple[int, float]] = []
        self._begin()

    def follow(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes those of all rows that are new; where a resumed stage has taken rows back, all of them."""
        known = len(self._written)
        if [_name(row) for row in rows[:known]] != self._written:
            self.close()
            self._written, known = [], 0
            self._begin()
        for row in rows[known:]:
            self._add(row)
            self._written.append(_name(row))
        self._events.flush()

    def close(self) -> None:
        """Writes what is still held back."""
        self._events.close()

    def _begin(self) -> None:
        # Takes half a second: only who writes events pays for it.
        from tensorboardX import SummaryWriter

        for file in self._folder.glob(FILES):
            file.unlink()
        self._events = SummaryWriter(str(self._folder))

    def _add(self, row: Mapping[str, Any]) -> None:
        step, time = _name(row)
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "time"):
                self._events.add_scalar(name, value, step, walltime=time)
        if row.get("samples"):
            said = [f"**{sample['given']}**\n\n{sample['written']}" for sample in row["samples"]]
            self._events.add_text("samples", "\n\n---\n\n".join(said), step, walltime=time)


def _name(row: Mapping[str, Any]) -> tuple[int, float]:
    return row["step"], row["time"]


# A progress bar and TensorBoard's files, both of which follow the metrics a stage writes, wherever it runs.
PERIOD = 1.0


@contextmanager
def metrics_progress(folder: Path, steps: int, title: str) -> Iterator[Console]:
    """Shows how many of `steps` are in the folder's `metrics.jsonl`, and the last loss, until the block ends; what is
    in it, TensorBoard finds beside it. What is printed to the console that it gives comes above the bar."""
    stop = threading.Event()
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
            with closing(EventWriter(folder)) as events:
                while True:
                    finished = stop.wait(PERIOD)
                    if rows := read_metrics(folder):
                        last = rows[-1]
                        figure = f"loss {last['loss']:.3f}" if "loss" in last else ""
                        progress.update(task, completed=last["step"] + 1, figure=figure)
                        events.follow(rows)
                    if finished:
                        return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield progress.console
        finally:
            stop.set()
            thread.join(PERIOD * 5)
