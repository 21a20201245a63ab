"""A stage run as a command on a copy of a finished run, and the processes of it that a scenario hits."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from cluster.run.folder import RunFolder
from cluster.run.layout import STAGES, stage_named
from cluster.run.metrics import read_metrics

SECONDS = 400.0
STEPS, PROMPTS = 6, 4
SETTINGS = [
    f"rlhf.steps={STEPS}",
    f"rlhf.prompts_per_step={PROMPTS}",
    "rlhf.checkpoint_every=1",
    # The time after which an actor hangs; its replacement has as long to start.
    "cluster.deadline_minutes=1",
]


class RlhfCommand:
    """`triptych rlhf` as a process, whose output goes to a log."""

    def __init__(self, run: RunFolder, log: Path, settings: Sequence[str] = ()) -> None:
        words = [sys.executable, "-m", "pipelines", "rlhf", str(run.root / "recipe.yaml"), f"run={run.root}"]
        with log.open("a") as out:
            self.process = subprocess.Popen(
                [*words, *SETTINGS, *settings], stdout=out, stderr=out, start_new_session=True
            )
        self.run = run

    def steps(self) -> int:
        """Counts the finished steps."""
        return len(read_metrics(self.run.partial("policy"))) or len(read_metrics(self.run.path("policy")))

    def found(self, title: str) -> list[psutil.Process]:
        """Finds the command's processes whose title begins so now; the command itself if the title is empty."""
        if not title:
            return [psutil.Process(self.process.pid)]
        return titled(self.process.pid, title)

    def end(self) -> None:
        """Kills the processes that are left of the command."""
        end_family(self.process.pid)
        self.process.wait(60)


def titled(root: int, title: str) -> list[psutil.Process]:
    """Finds the processes below a process whose title, as Ray sets it, begins so."""
    return [process for process in psutil.Process(root).children(recursive=True) if _title(process).startswith(title)]


def end_family(root: int) -> None:
    """Kills a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(root).children(recursive=True), psutil.Process(root)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def wrong_with(run: RunFolder, steps: int) -> list[str]:
    """Names the differences from a run without a fault: steps, prompts and versions each once, fresh weights."""
    rows = read_metrics(run.path("policy"))
    booked = run.require("policy").metrics["prompts"]
    checks = {
        "steps are missing or twice": [row["step"] for row in rows] == list(range(steps)),
        f"prompts are booked as {booked}": booked == {"trained": steps * PROMPTS, "filtered": 0, "failed": 0},
        "versions are missing or twice": [row["version"] for row in rows] == list(range(1, steps + 1)),
        "an engine computed with other weights": max(row["behavior_gap"] for row in rows) < 1e-3,
        "a sample was of old weights": {row["staleness"] for row in rows} == {0.0},
    }
    return [what for what, holds in checks.items() if not holds]


@contextlib.contextmanager
def copied(finished: Path, before: str = "rlhf") -> Iterator[RunFolder]:
    """Copies a run as it was before a stage, for as long as the context lasts."""
    later = [stage.folder for stage in STAGES[STAGES.index(stage_named(before)) :]]
    # The results of `collect` are in the database too.
    left_out = [*later, *["feedback.db*"] * ("preferences" in later), ".partial", "served", "lock"]
    with tempfile.TemporaryDirectory(prefix="triptych-faults-") as folder:
        root = Path(folder) / "run"
        shutil.copytree(finished, root, ignore=shutil.ignore_patterns(*left_out))
        yield RunFolder(root)


def wait_until(
    holds: Callable[[], bool],
    what: str,
    process: subprocess.Popen[bytes] | None = None,
    seconds: float = SECONDS,
    poll_seconds: float = 0.01,
) -> None:
    """Waits until something holds.

    Raises:
        TimeoutError: it does not hold in time, or the process ends before; the message names `what`.
    """
    end = time.monotonic() + seconds
    while not holds():
        if process and process.poll() is not None:
            raise TimeoutError(f"the command ended with {process.returncode} before {what}")
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(poll_seconds)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, IndexError):
        return process.cmdline()[0]
    return ""
