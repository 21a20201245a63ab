"""Kills the whole tree of processes in the middle of each stage, gives the command again, and compares what it left.

Each stage runs anew on a copy of a finished run, and all of it gets SIGKILL halfway. Seconds are those of the command
after it, with the start of Python and of Ray. Files that are not byte for byte those of the finished run are named,
except those with seconds in them. All stages together take about a quarter of an hour on two cores.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from cluster.run.folder import RunFolder, file_fingerprint
from cluster.run.layout import STAGES, Stage
from cluster.run.metrics import EVENT_FILES, read_metrics
from infra.bench.scenarios.command import copied, end_family, wait_until
from infra.bench.scenarios.outcome import Scenario, ScenarioOutcome, Settings

SECONDS = 900.0
WITH_SECONDS = ("manifest.json", "metrics.jsonl", "trace.json", EVENT_FILES, "stats.json", "report.json", "index.html")


@dataclass(frozen=True)
class KilledHalfway:
    """A stage that is killed halfway."""

    stage: Stage

    def measure(self, given: Settings) -> ScenarioOutcome:
        """Kills the stage and gives its command again.

        Raises:
            RuntimeError: the stage was over before it was killed, or the second command failed.
            TimeoutError: the stage did not begin.
            subprocess.TimeoutExpired: the second command did not end.
        """
        stage, finished = self.stage, RunFolder(given.run)
        whole = finished.require(stage.folder).seconds
        with copied(finished.root, stage.name) as run, given.log.open("a") as out:
            command = [sys.executable, "-m", "pipelines", stage.name, str(run.recipe_path), f"run={run.root}"]
            with subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
                try:
                    wait_until(lambda: run.partial_fingerprint(stage.folder) is not None, stage.name, process)
                    time.sleep(whole / 2)
                    if process.poll() is not None:
                        raise RuntimeError(f"over with {process.returncode} before it was killed; see {given.log}")
                finally:
                    end_family(process.pid)
            begin = time.monotonic()
            code = subprocess.run(command, stdout=out, stderr=out, timeout=SECONDS, check=False).returncode
            seconds = time.monotonic() - begin
            if code:
                raise RuntimeError(f"the same command ended with {code}; see {given.log}")
            details = f"killed after {whole / 2:.1f} s of {whole:.1f}"
            return ScenarioOutcome(seconds, "the same command again", differences(stage, run, finished), details)


def differences(stage: Stage, run: RunFolder, finished: RunFolder) -> list[str]:
    """Names files that differ, steps that are missing or there twice, and temporary files that are left."""
    found, expected = hashes(run.path(stage.folder)), hashes(finished.path(stage.folder))
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    steps, undisturbed = (
        [row.get("step") for row in read_metrics(each.path(stage.folder))] for each in (run, finished)
    )
    left = [path.name for path in (run.root / ".partial").iterdir()]
    return different + ["steps"] * (steps != undisturbed) + left


def hashes(folder: Path) -> dict[str, str]:
    """Computes the fingerprint of each file by its path."""
    every = [file for file in folder.rglob("*") if file.is_file()]
    files = [file for file in every if not any(fnmatch(file.name, pattern) for pattern in WITH_SECONDS)]
    return {str(file.relative_to(folder)): file_fingerprint(file) for file in files}


SCENARIOS = [Scenario(f"stage: {stage.name} killed halfway", KilledHalfway(stage).measure) for stage in STAGES]
