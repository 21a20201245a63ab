"""Kills the whole tree of processes in the middle of each stage, gives the command again, and compares what it left.

Each stage runs anew on a copy of a finished run, and all of it gets SIGKILL halfway. The table has the seconds of the
stage undisturbed, until the kill, and of the command after it (with the start of Python and of Ray), and the files that
are not byte for byte those of the finished run. Those with seconds in them are not compared.

make demo && python -m infra.bench.kills [--run runs/demo] [--only sft]        about a quarter of an hour
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.metrics import read_metrics
from cluster.run import RunFolder
from cluster.stages import STAGES, Stage
from infra.bench.faults import end_family

SECONDS = 900.0
WITH_SECONDS = {"manifest.json", "metrics.jsonl", "stats.json", "report.json", "index.html"}


def killed_halfway(stage: Stage, finished: RunFolder, log: Path) -> tuple[float, float, list[str]]:
    """Seconds of work until the kill, of the same command after it, and what is wrong with what is there then.

    Raises:
        RuntimeError: the stage was over before it was killed, or the second command failed.
        subprocess.TimeoutExpired: the second command did not end.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-kills-") as name:
        run = copied(finished, stage, Path(name))
        command = [sys.executable, "-m", "cluster.cli", stage.name, str(run.recipe_path), f"run={run.root}"]
        with log.open("a") as out:
            work = finished.require(stage.folder, stage.name).seconds / 2
            with subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
                while process.poll() is None and run.mark(stage.folder) is None:
                    time.sleep(0.05)
                time.sleep(work)
                end_family(process.pid)
            if run.manifest(stage.folder):
                raise RuntimeError("over before it was killed")
            begin = time.monotonic()
            code = subprocess.run(command, stdout=out, stderr=out, timeout=SECONDS, check=False).returncode
            again = time.monotonic() - begin
        if code:
            raise RuntimeError(f"the same command ended with {code}; see {log}")
        return work, again, wrong(stage, run, finished)


def copied(finished: RunFolder, stage: Stage, folder: Path) -> RunFolder:
    """The run as it was before the stage."""
    later = {each.folder for each in STAGES[STAGES.index(stage) :]}
    if "preferences" in later:
        later.add("feedback.db*")
    shutil.copytree(finished.root, folder / "run", ignore=shutil.ignore_patterns(*later, ".partial", "served", "lock"))
    return RunFolder(folder / "run")


def wrong(stage: Stage, run: RunFolder, finished: RunFolder) -> list[str]:
    """Files that differ, steps that are missing or there twice, what was not cleared away."""
    found, expected = hashes(run.path(stage.folder)), hashes(finished.path(stage.folder))
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    steps, undisturbed = (
        [row.get("step") for row in read_metrics(each.path(stage.folder))] for each in (run, finished)
    )
    left = [path.name for path in (run.root / ".partial").iterdir()]
    return different + ["steps"] * (steps != undisturbed) + left


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its path."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in WITH_SECONDS]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main() -> None:
    """Prints the table; ends with 1 if a stage did not go on."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    words.add_argument("--only", default="", help="the stage of this name")
    words.add_argument("--log", type=Path, default=Path("kills.log"), help="what the commands print goes here")
    given = words.parse_args()
    finished = RunFolder(given.run)
    if not finished.manifest("report"):
        print(f"{given.run} is not finished: run `make demo` first")
        return
    table = Table("stage", "seconds", "killed after", "the command again", "not as undisturbed")
    failed = False
    for stage in (stage for stage in STAGES if given.only in ("", stage.name)):
        try:
            work, again, differ = killed_halfway(stage, finished, given.log)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            work = again = float("nan")
            differ, failed = [str(error)], True
        seconds = finished.require(stage.folder, stage.name).seconds
        row = (stage.name, f"{seconds:.1f}", f"{work:.1f}", f"{again:.1f}", ", ".join(differ) or "nothing")
        print(*row, sep="  ", flush=True)
        table.add_row(*row)
    Console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
