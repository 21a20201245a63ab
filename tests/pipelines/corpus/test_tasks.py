"""Tasks of a phase on Ray: deadlines, and storage that does not answer."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.progress import Progress

from cluster.errors import DeadlineError, StorageError
from pipelines.corpus import tasks

pytestmark = pytest.mark.slow


def test_a_phase_without_progress_is_named(ray_session: None, tmp_path: Path) -> None:
    stuck = [tasks.Task("stuck", "key", ())]
    with (
        Progress(disable=True) as progress,
        pytest.raises(DeadlineError, match="waited 1 s for a task of the phase 'find duplicates'"),
    ):
        tasks.run_tasks("find duplicates", tmp_path, stuck, _sleep, progress, deadline=1)


def test_parts_that_a_storage_did_not_answer_are_done_by_the_next_run(ray_session: None, tmp_path: Path) -> None:
    parts = [tasks.Task(f"part-{number}", "key", ()) for number in range(3)]

    def attempt(function: Callable[[int], dict[str, object]]) -> list[dict[str, object]]:
        with Progress(disable=True) as progress:
            return tasks.run_tasks("read", tmp_path, parts, function, progress, deadline=60)

    with pytest.raises(StorageError, match="cannot read s3://b/1: 403; 1 of 3 parts of the phase 'read' are not done"):
        attempt(_unanswered)
    assert attempt(_answered) == [{"by": "first"}, {"by": "second"}, {"by": "first"}]


def _unanswered(index: int) -> dict[str, object]:
    if index == 1:
        raise StorageError("cannot read s3://b/1: 403")
    return {"by": "first"}


def _answered(_: int) -> dict[str, object]:
    return {"by": "second"}


def _sleep(_: int) -> dict[str, object]:
    time.sleep(5)
    return {}
