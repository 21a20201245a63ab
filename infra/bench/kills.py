"""Kills the whole tree of processes in the middle of each stage, gives the command again, and compares what it left.

Each stage runs anew on a copy of a finished run, and all of it gets SIGKILL halfway. The table has the seconds of the
stage undisturbed, until the kill, and of the command after it (with the start of Python and of Ray), and the files that
are not byte for byte those of the finished run. Those with seconds in them are not compared.

make demo && python -m infra.bench.kills [--run runs/demo] [--only sft]        about a quarter of an hour
"""

import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.run.folder import RunFolder, file_fingerprint
from cluster.run.layout import STAGES, Stage
from cluster.run.metrics import FILES, read_metrics
from infra.bench.faults import copied, end_family, options, parsed, wait_for

SECONDS = 900.0
WITH_SECONDS = ("manifest.json", "metrics.jsonl", "trace.json", FILES, "stats.json", "report.json", "index.html")


def killed_halfway(stage: Stage, finished: RunFolder, log: Path) -> tuple[float, float, list[str]]:
    """Seconds of work until the kill, of the same command after it, and what is wrong with what is there then.

    Raises:
        RuntimeError: the stage was over before it was killed, or the second command failed.
        TimeoutError: the stage did not begin.
        subprocess.TimeoutExpired: the second command did not end.
    """
    with copied(finished.root, stage.name) as run, log.open("a") as out:
        command = [sys.executable, "-m", "pipelines", stage.name, str(run.recipe_path), f"run={run.root}"]
        work = finished.require(stage.folder).seconds / 2
        with subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
            try:
                wait_for(lambda: run.mark(stage.folder) is not None, stage.name, process)
                time.sleep(work)
                if process.poll() is not None:
                    raise RuntimeError(f"over with {process.returncode} before it was killed; see {log}")
            finally:
                end_family(process.pid)
        begin = time.monotonic()
        code = subprocess.run(command, stdout=out, stderr=out, timeout=SECONDS, check=False).returncode
        again = time.monotonic() - begin
        if code:
            raise RuntimeError(f"the same command ended with {code}; see {log}")
        return work, again, wrong(stage, run, finished)


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
    """The fingerprint of each file by its path."""
    every = [file for file in folder.rglob("*") if file.is_file()]
    files = [file for file in every if not any(fnmatch(file.name, pattern) for pattern in WITH_SECONDS)]
    return {str(file.relative_to(folder)): file_fingerprint(file) for file in files}


def main() -> None:
    """Prints the table; ends with 1 if a stage did not go on."""
    words = options(__doc__, "kills.log")
    words.add_argument("--only", default="", help="the stage of this name")
    given = parsed(words)
    finished = RunFolder(given.run)
    table = Table("stage", "seconds", "killed after", "the command again", "not as undisturbed")
    failed = False
    for stage in (stage for stage in STAGES if given.only in ("", stage.name)):
        try:
            work, again, differ = killed_halfway(stage, finished, given.log)
        except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
            work = again = float("nan")
            differ, failed = [str(error)], True
        seconds = finished.require(stage.folder).seconds
        row = (stage.name, f"{seconds:.1f}", f"{work:.1f}", f"{again:.1f}", ", ".join(differ) or "nothing")
        print(*row, sep="  ", flush=True)
        table.add_row(*row)
    Console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
