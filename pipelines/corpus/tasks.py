"""Runs the tasks of a phase with Ray Data, without those that an earlier attempt finished.

A task writes its outputs under fixed names, each atomically, and then a marker with its report. A kill at any moment
thus leaves every task done or not done, and the same command runs the remaining ones.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from rich.progress import Progress

from cluster.errors import DeadlineError, StorageError, UserError
from cluster.run.atomic import write_json

Report = dict[str, Any]
# Version of the outputs and reports of all phases; markers of other versions are ignored.
VERSION = 5


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
        function: pickled to the workers; must return JSON.
        deadline: seconds without any task finishing after which the phase is given up.

    Raises:
        UserError: the one of the first task, in order, that raised one.
        StorageError: the storage did not answer some tasks; the other ones are done and stay so.
        DeadlineError: no task finished in time.
    """
    bar = progress.add_task(phase, total=len(tasks))
    reports = {index: report for index, task in enumerate(tasks) if (report := _finished(folder, task)) is not None}
    progress.update(bar, completed=len(reports))
    pending = [index for index in range(len(tasks)) if index not in reports]
    if pending:
        folder.mkdir(parents=True, exist_ok=True)
        errors: dict[int, str] = {}
        unanswered: dict[int, str] = {}
        for row in _execute(phase, pending, partial(_run_task, function, folder, tuple(tasks)), deadline):
            if row["error"]:
                (errors if row["final"] else unanswered)[row["task"]] = row["error"]
            else:
                reports[row["task"]] = json.loads(row["report"])
            progress.advance(bar)
        if errors:
            raise UserError(errors[min(errors)])
        if unanswered:
            left = f"{len(unanswered):,} of {len(tasks):,} parts of the phase {phase!r} are not done"
            raise StorageError(f"{unanswered[min(unanswered)]}; {left}")
    return [reports[index] for index in range(len(tasks))]


def _execute(phase: str, pending: Sequence[int], run: Callable[[Report], Report], deadline: float) -> Iterator[Report]:
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray Data's default is to wait half an hour before it reports that nothing progresses.
    context.execution_no_progress_timeout_s = deadline
    with ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"task": index} for index in pending], override_num_blocks=len(pending))
        try:
            yield from rows.map(run).iter_rows()
        except ExecutionTimeoutError as error:
            raise DeadlineError(
                f"waited {deadline:.0f} s for a task of the phase {phase!r}; see the Ray logs"
            ) from error


def _run_task(function: Callable[[int], Report], folder: Path, tasks: tuple[Task, ...], row: Report) -> Report:
    index = int(row["task"])
    task = tasks[index]
    try:
        report = function(index)
    except (UserError, StorageError) as error:
        # A raised error would come back wrapped in the traces of two processes.
        return {"task": index, "report": "", "error": str(error), "final": isinstance(error, UserError)}
    finally:
        # The worker process runs later tasks too, of any phase: memory that Arrow keeps from this one would add up.
        pyarrow.default_memory_pool().release_unused()
    write_json(_marker(folder, task), {"version": VERSION, "key": task.key, "report": report})
    return {"task": index, "report": json.dumps(report), "error": "", "final": True}


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
