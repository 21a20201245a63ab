"""Kills the corpus stage ten times at random moments, with varying numbers of workers, and compares the outputs.

It takes about five minutes on two cores.
"""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from infra.bench.corpora.documents import documents, write_lines
from infra.bench.corpora.stage_run import family, hashes, start, watch, write_recipe
from infra.bench.scenarios.outcome import Scenario, ScenarioOutcome, Settings

KILLS, DOCUMENTS, WORKERS = 10, 5000, (1, 2, 3)
_EVERY_SECONDS = 0.05


def measure(given: Settings) -> ScenarioOutcome:
    """Prints a line per kill; the outcome's seconds are those of the command after the last kill."""
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="triptych-kills-") as name:
        folder = Path(name)
        recipe = write_recipe(folder, write_lines(folder / "lines.jsonl", documents(DOCUMENTS)))
        process = _at_work(folder, start(recipe, 2))
        begun = time.monotonic()
        process.wait()
        whole = time.monotonic() - begun
        expected = hashes(folder / "run")
        print(f"undisturbed: {whole:.1f} s of work, {len(expected)} files", flush=True)
        shutil.rmtree(folder / "run")
        kills = workers = 0
        while kills < KILLS:
            workers = rng.choice([count for count in WORKERS if count != workers])
            # Short enough that most of the ten kills hit one run.
            moment = rng.uniform(0, 1.5 * whole / KILLS)
            if _killed(_at_work(folder, start(recipe, workers)), moment):
                kills += 1
                print(f"kill {kills}: after {moment:.1f} s of work, {workers} workers; {_done(folder)}", flush=True)
                continue
            print(f"finished within {moment:.1f} s: {_compared(folder, expected)}; starting over", flush=True)
            shutil.rmtree(folder / "run")
        seconds = watch(start(recipe, 2)).seconds
        wrong = [] if hashes(folder / "run") == expected else [_compared(folder, expected)]
        details = f"after {kills} kills: {_compared(folder, expected)}; undisturbed {whole:.1f} s"
    return ScenarioOutcome(seconds, "the same command again", wrong, details)


def _at_work(folder: Path, process: psutil.Popen) -> psutil.Popen:
    """Waits until the stage, which starts Ray first, writes a file or ends."""
    before = _files(folder)
    while process.poll() is None and _files(folder) == before:
        time.sleep(_EVERY_SECONDS)
    return process


def _files(folder: Path) -> set[str]:
    """Names the files that tasks write, unfinished ones included."""
    # Unlike rglob, walk skips folders that disappear meanwhile.
    return {f"{place}/{name}" for place, _, names in os.walk(folder / "run") if "corpus" in place for name in names}


def _killed(process: psutil.Popen, moment: float) -> bool:
    """Kills the stage with all its processes after `moment` seconds; returns False if it finished before."""
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(_EVERY_SECONDS)
    if process.poll() is not None:
        return False
    for member in [process, *family(process)]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    return True


def _done(folder: Path) -> str:
    markers = (folder / "run").rglob("work/done/*/*.json")
    return f"{sum(1 for _ in markers)} tasks of all phases done"


def _compared(folder: Path, expected: dict[str, str]) -> str:
    found = hashes(folder / "run")
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"{len(found)} files, {f'different: {different}' if different else 'all the same bytes'}"


SCENARIOS = [Scenario("corpus: killed ten times at random moments", measure, needs_run=False)]
