"""Runs the tasks of a phase on Ray, without those that an earlier attempt finished.

A task writes its outputs under fixed names, each atomically, and then a marker with its report. A kill at any moment
thus leaves every task done or not done, and the same command runs the remaining ones.
"""

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.errors import DeadlineError, StorageError, UserError
from cluster.run.atomic import write_json
from pipelines.corpus.heartbeat import heartbeats, last_heartbeat

Report = dict[str, Any]
# Version of the outputs and reports of all phases; markers of other versions are ignored.
VERSION = 6
# Retries of a task whose worker process died.
_RETRIES = 3
# Tasks given to Ray before the first of them are done.
_LEAST_AT_ONCE, _AT_ONCE_PER_CPU = 64, 4
# Seconds between looks at the heartbeats of the running tasks.
_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Task:
    """A unit of work within a phase.

    Attributes:
        name: unique within the phase.
        key: fingerprint of everything that the outputs depend on.
        outputs: files that the task writes.
    """

    name: str
    key: str
    outputs: tuple[Path, ...]


class Phase(ABC):
    """The work of a phase, as a function of a task's index; `only` reduces it to the data that one task needs."""

    @abstractmethod
    def __call__(self, index: int) -> Report:
        """Runs a task."""

    @abstractmethod
    def only(self, index: int) -> Callable[[int], Report]:
        """Returns the phase of one task alone, whose index is 0: sending all parts with each would be quadratic."""


@dataclass(frozen=True)
class PhaseRunner:
    """Runs phases with one task for each of so many parts, ranges or groups.

    Attributes:
        folder: the folder of the stage, below which the markers are.
        progress: gets a line for each phase.
        deadline: as of `run_tasks`.
    """

    folder: Path
    progress: Progress
    deadline: float

    def run(
        self,
        title: str,
        name: str,
        keys: Sequence[str],
        outputs: Callable[[int], tuple[Path, ...]],
        phase: Callable[[int], Report],
    ) -> list[Report]:
        """Runs a phase by `run_tasks`, and raises what that raises.

        Args:
            title: for the progress bar and for errors.
            name: the folder of the phase's markers.
            keys: the key of each task.
            outputs: returns the files that a task writes.
            phase: the work.
        """
        tasks = [Task(f"{index:05d}", key, outputs(index)) for index, key in enumerate(keys)]
        return run_tasks(title, self.folder / "work" / "done" / name, tasks, phase, self.progress, self.deadline)


def phase_progress(console: Console) -> Progress:
    """Makes a progress bar with a line for each phase: its finished tasks, and the time since its start."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def add_counts(reports: Iterable[Report], name: str) -> Counter[str]:
    """Adds up a field of reports that holds counts by name."""
    total = Counter[str]()
    for report in reports:
        total.update(report[name])
    return total


def run_tasks(
    phase: str,
    folder: Path,
    tasks: Sequence[Task],
    function: Callable[[int], Report],
    progress: Progress,
    deadline: float,
) -> list[Report]:
    """Calls `function(index)` once for every task that is not done, and returns the reports of all, in order.

    Args:
        phase: name for the progress bar and for errors.
        folder: folder of the phase's markers.
        function: pickled to the workers, a `Phase` task by task; must return JSON.
        deadline: seconds without any task finishing or going on after which the phase is given up.

    Raises:
        UserError: the one of the first task, in order, that raised one.
        StorageError: the storage did not answer some tasks; the other ones are done and stay so.
        DeadlineError: no task finished or went on in time.
    """
    bar = progress.add_task(phase, total=len(tasks))
    reports = {index: report for index, task in enumerate(tasks) if (report := _finished(folder, task)) is not None}
    progress.update(bar, completed=len(reports))
    pending = [index for index in range(len(tasks)) if index not in reports]
    if pending:
        folder.mkdir(parents=True, exist_ok=True)
        errors: dict[int, str] = {}
        unanswered: dict[int, str] = {}
        for index, done in _execute(phase, pending, folder, tasks, function, deadline):
            if done["error"]:
                (errors if done["final"] else unanswered)[index] = done["error"]
            else:
                reports[index] = done["report"]
            progress.advance(bar)
        if errors:
            raise UserError(errors[min(errors)])
        if unanswered:
            left = f"{len(unanswered):,} of {len(tasks):,} parts of the phase {phase!r} are not done"
            raise StorageError(f"{unanswered[min(unanswered)]}; {left}")
    return [reports[index] for index in range(len(tasks))]


def _execute(
    phase: str,
    pending: Sequence[int],
    folder: Path,
    tasks: Sequence[Task],
    function: Callable[[int], Report],
    deadline: float,
) -> Iterator[tuple[int, Report]]:
    import ray

    whole: Any = None if isinstance(function, Phase) else ray.put(function)
    # A machine that an autoscaler adds takes tasks that still wait.
    remote = ray.remote(_run_task).options(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")
    waiting = iter(pending)
    running: dict[Any, int] = {}
    watch = _Watch(folder, deadline)
    try:
        while True:
            at_once = max(_LEAST_AT_ONCE, _AT_ONCE_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < at_once and (index := next(waiting, None)) is not None:
                work: Any
                work, place = (function.only(index), 0) if isinstance(function, Phase) else (whole, index)
                running[remote.remote(work, place, folder, tasks[index])] = index
            if not running:
                return
            ready, _ = ray.wait([*running], num_returns=1, timeout=watch.pause)
            for reference in ready:
                yield running.pop(reference), ray.get(reference)
                watch.restart()
            if not ready and watch.is_over([tasks[index] for index in running.values()]):
                raise DeadlineError(f"waited {deadline:.0f} s for a task of the phase {phase!r}; see the Ray logs")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


class _Watch:
    """Measures the time since a task last finished or made progress.

    Attributes:
        pause: seconds after which to look again.
    """

    def __init__(self, folder: Path, deadline: float) -> None:
        self._folder, self._deadline = folder, deadline
        self.pause = min(_LOOK_SECONDS, deadline / 4)
        self._last = time.monotonic()
        self._beats: dict[str, int] = {}

    def restart(self) -> None:
        self._last = time.monotonic()

    def is_over(self, running: Sequence[Task]) -> bool:
        beats = {task.name: last_heartbeat(_heartbeat_file(self._folder, task)) for task in running}
        if any(beat != self._beats.get(name, 0) for name, beat in beats.items()):
            self._last = time.monotonic()
        self._beats = beats
        return time.monotonic() - self._last > self._deadline


def _run_task(work: Callable[[int], Report], index: int, folder: Path, task: Task) -> Report:
    try:
        with heartbeats(_heartbeat_file(folder, task)):
            report = work(index)
    except (UserError, StorageError) as error:
        # A raised error would come back wrapped in the traces of two processes.
        return {"report": None, "error": str(error), "final": isinstance(error, UserError)}
    finally:
        # The worker process runs later tasks too, of any phase: memory that Arrow keeps from this one would add up.
        pyarrow.default_memory_pool().release_unused()
    write_json(_marker(folder, task), {"version": VERSION, "key": task.key, "report": report})
    # In the form in which a marker is read: keys are strings, tuples are lists.
    return {"report": json.loads(json.dumps(report)), "error": "", "final": True}


def _finished(folder: Path, task: Task) -> Report | None:
    """Returns the report of a task that an earlier attempt finished with the same key, else None."""
    try:
        marker = json.loads(_marker(folder, task).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if (marker.get("version"), marker["key"]) != (VERSION, task.key) or not all(path.exists() for path in task.outputs):
        return None
    report: Report = marker["report"]
    return report


def _marker(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.json"


def _heartbeat_file(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.heartbeat"
