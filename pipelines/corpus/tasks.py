"""Runs one phase over many parts with Ray Data; a part that an earlier attempt finished is not done again.

A part's function writes its outputs under fixed names, to the side first. Only then does its marker appear, so that a
kill at any moment leaves parts that are whole or absent, and the same command goes on with the absent ones.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
from rich.progress import Progress

from cluster.errors import DeadlineError, UserError
from cluster.run.folder import write_json

Report = dict[str, Any]
# Of what the tasks of all phases write and report; a marker of another version counts for nothing.
VERSION = 2


@dataclass(frozen=True)
class Task:
    """One task's share of a phase.

    Attributes:
        name: unique in the phase.
        key: fingerprint of all that decides what comes out.
        outputs: the files that the task writes.
    """

    name: str
    key: str
    outputs: tuple[Path, ...]


def run_tasks(
    phase: str,
    folder: Path,
    parts: Sequence[Task],
    function: Callable[[int], Report],
    progress: Progress,
    deadline: float,
) -> list[Report]:
    """Calls `function(index)` for every part that is not done, one task each, and gives all parts' reports in order.

    Args:
        folder: where the phase's markers are kept.
        function: pickled to the workers; what it returns must be JSON.
        deadline: seconds without any part finishing after which the phase is given up.

    Raises:
        UserError: of the first part, in order, that raised one.
        DeadlineError: no part finished in time.
    """
    bar = progress.add_task(phase, total=len(parts))
    reports = {index: report for index, part in enumerate(parts) if (report := _finished(folder, part)) is not None}
    progress.update(bar, completed=len(reports))
    pending = [index for index in range(len(parts)) if index not in reports]
    if pending:
        folder.mkdir(parents=True, exist_ok=True)
        errors: dict[int, str] = {}
        for row in _execute(phase, pending, partial(_run_part, function, folder, tuple(parts)), deadline):
            if row["error"]:
                errors[row["part"]] = row["error"]
            else:
                reports[row["part"]] = json.loads(row["report"])
            progress.advance(bar)
        if errors:
            raise UserError(errors[min(errors)])
    return [reports[index] for index in range(len(parts))]


@contextmanager
def written_to_the_side(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.side")
    yield side
    side.replace(path)


def _execute(phase: str, pending: Sequence[int], task: Callable[[Report], Report], deadline: float) -> Iterator[Report]:
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # By default Ray Data would wait half an hour before it says that nothing moves.
    context.execution_no_progress_timeout_s = deadline
    with ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"part": index} for index in pending], override_num_blocks=len(pending))
        try:
            yield from rows.map(task).iter_rows()
        except ExecutionTimeoutError as error:
            raise DeadlineError(
                f"waited {deadline:.0f} s for a task of the phase {phase!r}; see the Ray logs"
            ) from error


def _run_part(function: Callable[[int], Report], folder: Path, parts: tuple[Task, ...], row: Report) -> Report:
    index = int(row["part"])
    part = parts[index]
    try:
        report = function(index)
    except UserError as error:
        # A raised error would come back wrapped in the traces of two processes.
        return {"part": index, "report": "", "error": str(error)}
    finally:
        # A worker lives on for the next part, of whatever phase: what Arrow keeps of this one would come on top.
        pyarrow.default_memory_pool().release_unused()
    write_json(_marker(folder, part), {"version": VERSION, "key": part.key, "report": report})
    return {"part": index, "report": json.dumps(report), "error": ""}


def _finished(folder: Path, part: Task) -> Report | None:
    try:
        marker = json.loads(_marker(folder, part).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if (marker.get("version"), marker["key"]) != (VERSION, part.key) or not all(path.exists() for path in part.outputs):
        return None
    report: Report = marker["report"]
    return report


def _marker(folder: Path, part: Task) -> Path:
    return folder / f"{part.name}.json"


# How long the steps of a task take.
T = TypeVar("T")


class StepTimer:
    """Adds up the seconds of every step that is named."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def reading(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Passes on the items, and times how long each takes to come, not what is done with it."""
        spent, start = 0.0, time.perf_counter()
        for item in items:
            spent += time.perf_counter() - start
            yield item
            start = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + spent + time.perf_counter() - start
