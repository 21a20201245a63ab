"""What a fault in the midst of RLHF costs: processes of a real run are killed or stopped, and it has to go on.

For each fault the stage runs anew on a copy of a finished run. The table gives the seconds from the fault to the next
finished step, and what it took: nothing, or the same command again. A run counts as whole when it ends well, with each
step once, the prompts of each step trained once, and engines that computed with the learner's weights throughout.

make demo && python -m infra.bench.faults [--run runs/demo] [--only learner]
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from cluster.run.folder import RunFolder
from cluster.run.layout import STAGES, stage_named
from cluster.run.metrics import read_metrics

STEPS, PROMPTS = 6, 4
# A fault comes once so many steps are done: there is a checkpoint by then.
AFTER = 2
SECONDS = 400.0
SETTINGS = [
    f"rlhf.steps={STEPS}",
    f"rlhf.prompts_per_step={PROMPTS}",
    "rlhf.checkpoint_every=1",
    # How long an actor that hangs is waited for; its replacement has as long to start.
    "cluster.deadline_minutes=1",
]


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Attributes:
        title: how Ray names the process while it is at what it is hit in; empty for the command itself.
        number: how many such processes are hit.
        sent: the signal.
        after: steps that are done before.
        again: whether the command ends, and is given again.
        settings: of the recipe.
    """

    name: str
    title: str
    number: int = 1
    sent: signal.Signals = signal.SIGKILL
    after: int = AFTER
    again: bool = False
    settings: tuple[str, ...] = ()


FAULTS = (
    Fault("rollout actor killed as it starts", "ray::RolloutActor.__init__", after=0),
    Fault("rollout actor killed as it draws", "ray::RolloutActor.generate"),
    Fault("rollout actor killed as it takes weights", "ray::RolloutActor.pull_weights"),
    Fault("rollout actor stopped as it draws", "ray::RolloutActor.generate", sent=signal.SIGSTOP),
    Fault("all rollout actors killed", "ray::RolloutActor", number=2),
    Fault("reward actor killed", "ray::ModelReward"),
    Fault("learner killed as it learns", "ray::Learner.step", again=True),
    Fault("learner killed as it saves", "ray::Learner.save", again=True),
    Fault(
        "one of two learner workers killed", "ray::Learner.step", again=True, settings=("rlhf.fleet.learner_workers=2",)
    ),
    Fault("driver killed", "", again=True),
    Fault("driver told to end", "", sent=signal.SIGTERM, again=True),
)


@dataclass(frozen=True)
class Outcome:
    """Seconds from the fault to the next step, and what is wrong with the run; nothing, if all is well."""

    seconds: float
    wrong: list[str]


class Command:
    """The stage as a process, what it prints in a log."""

    def __init__(self, run: RunFolder, log: Path, settings: Sequence[str] = ()) -> None:
        words = [sys.executable, "-m", "pipelines", "rlhf", str(run.root / "recipe.yaml"), f"run={run.root}"]
        with log.open("a") as out:
            self.process = subprocess.Popen(
                [*words, *SETTINGS, *settings], stdout=out, stderr=out, start_new_session=True
            )
        self.run = run

    def steps(self) -> int:
        """Steps that are finished."""
        return len(read_metrics(self.run.partial("policy"))) or len(read_metrics(self.run.path("policy")))

    def found(self, title: str) -> list[psutil.Process]:
        """Its processes that have such a title now."""
        if not title:
            return [psutil.Process(self.process.pid)]
        return titled(self.process.pid, title)

    def end(self) -> None:
        """Kills what is left of it."""
        end_family(self.process.pid)
        self.process.wait(60)


def titled(root: int, title: str) -> list[psutil.Process]:
    """The processes below a process whose title, as Ray sets it, begins so."""
    return [process for process in psutil.Process(root).children(recursive=True) if _title(process).startswith(title)]


def end_family(root: int) -> None:
    """Kills a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(root).children(recursive=True), psutil.Process(root)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, IndexError):
        return process.cmdline()[0]
    return ""


def survive(fault: Fault, finished: Path, log: Path) -> Outcome:
    """Runs the stage through one fault.

    Raises:
        TimeoutError: something was waited for too long; the message says what.
    """
    with copied(finished) as run:
        command = Command(run, log, fault.settings)
        try:
            wait_for(lambda: command.steps() >= fault.after, f"step {fault.after}", command.process)
            wait_for(
                lambda: len(command.found(fault.title)) >= fault.number,
                f"{fault.number} {fault.title}",
                command.process,
            )
            hit = command.found(fault.title)[: fault.number]
            begin, done = time.monotonic(), command.steps()
            for process in hit:
                with contextlib.suppress(psutil.NoSuchProcess):
                    os.kill(process.pid, fault.sent)
            if fault.again:
                command.process.wait(SECONDS)
                command.end()
                command = Command(run, log, fault.settings)
            wait_for(lambda: command.steps() > done, "the next step", command.process)
            seconds = time.monotonic() - begin
            code = command.process.wait(SECONDS)
        finally:
            command.end()
        return Outcome(seconds, [f"exit code {code}"] if code else wrong(run, STEPS))


def wrong(run: RunFolder, steps: int) -> list[str]:
    """What is not as it would have been without a fault."""
    rows = read_metrics(run.path("policy"))
    booked = run.require("policy").metrics["prompts"]
    checks = {
        "steps are missing or twice": [row["step"] for row in rows] == list(range(steps)),
        f"prompts are booked as {booked}": booked == {"trained": steps * PROMPTS, "filtered": 0},
        "versions are missing or twice": [row["version"] for row in rows] == list(range(1, steps + 1)),
        "an engine computed with other weights": max(row["behavior_gap"] for row in rows) < 1e-3,
        "a sample was of old weights": {row["staleness"] for row in rows} == {0.0},
    }
    return [what for what, holds in checks.items() if not holds]


@contextlib.contextmanager
def copied(finished: Path, before: str = "rlhf") -> Iterator[RunFolder]:
    """A copy of a run as it was before a stage."""
    later = [stage.folder for stage in STAGES[STAGES.index(stage_named(before)) :]]
    # What `collect` makes lies in the database too.
    left_out = [*later, *["feedback.db*"] * ("preferences" in later), ".partial", "served", "lock"]
    with tempfile.TemporaryDirectory(prefix="triptych-faults-") as folder:
        root = Path(folder) / "run"
        shutil.copytree(finished, root, ignore=shutil.ignore_patterns(*left_out))
        yield RunFolder(root)


def options(about: str | None, log: str) -> argparse.ArgumentParser:
    """The words that all take who break a finished run."""
    words = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    words.add_argument("--log", type=Path, default=Path(log), help="what the commands print goes here")
    return words


def parsed(words: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; ends the program if the run is not finished, for which `make bench` does not fail."""
    given = words.parse_args()
    if not RunFolder(given.run).manifest("report"):
        print(f"{given.run} is not finished: run `make demo` first")
        sys.exit()
    return given


def wait_for(holds: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Raises a TimeoutError that names what was waited for, if the command ends before or it takes too long."""
    end = time.monotonic() + SECONDS
    while not holds():
        if process.poll() is not None:
            raise TimeoutError(f"the command ended with {process.returncode} before {what}")
        if time.monotonic() > end:
            raise TimeoutError(f"waited {SECONDS:.0f} s for {what}")
        time.sleep(0.01)


def main() -> None:
    """Prints the table; ends with 1 if a run was not whole."""
    words = options(__doc__, "faults.log")
    words.add_argument("--only", default="", help="faults with this in their name")
    given = parsed(words)
    table = Table("fault", "seconds to the next step", "what it took", "wrong")
    failed = False
    for fault in (fault for fault in FAULTS if given.only in fault.name):
        try:
            outcome = survive(fault, given.run, given.log)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            outcome = Outcome(float("nan"), [str(error)])
        failed |= bool(outcome.wrong)
        print(f"{fault.name}: {outcome.seconds:.1f} s {'; '.join(outcome.wrong)}", flush=True)
        took = "the same command again" if fault.again else "nothing"
        table.add_row(fault.name, f"{outcome.seconds:.1f}", took, "; ".join(outcome.wrong) or "nothing")
    Console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
