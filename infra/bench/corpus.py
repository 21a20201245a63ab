"""Compares the corpus stage's filters and MinHash with datatrove's, and each of its steps with its library alone.

python -m infra.bench.corpus [documents]        default 1,000; one core, without Ray

Seconds are processor time, so that they are comparable on a busy machine. datatrove gets an environment of its own in
the cache folder, which takes a minute the first time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil

from cluster.recipe.corpus import C4, FineWeb, GopherQuality, GopherRepetition, Rules, Source
from infra.bench.corpora.documents import documents, write_lines
from infra.bench.corpora.steps import steps
from infra.bench.peers.install import on_their_own
from pipelines.corpus.dedup.cluster import KEPT, ClusterPhase, decide
from pipelines.corpus.dedup.index import Index, IndexPhase
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.filter.cache import MeasureSettings
from pipelines.corpus.prepare import PreparePhase
from pipelines.corpus.read.sources import plan_splits
from pipelines.corpus.tables import Part

DOCUMENTS = 1000
PEER = ("datatrove[io,processing]==0.10.0", "spacy==3.8.18")
RULES = Rules(gopher_quality=GopherQuality(), gopher_repetition=GopherRepetition(), c4=C4(), fineweb=FineWeb())
SIMILARITY = 0.8
REPEATS, LEAST_SECONDS = 5, 2.0


def main(count: int) -> None:
    """Prints both rates with their ratio, then a line per step."""
    if hasattr(os, "sched_setaffinity"):
        # The page parser has its own process, and two busy cores slow each other down.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="triptych-corpus-") as name:
        folder = Path(name)
        lines = write_lines(folder / "lines.jsonl", documents(count))
        size = lines.stat().st_size
        print(f"{count:,} documents, {size / 1e6:.1f} MB; filters: Gopher quality and repetition, C4, FineWeb; MinHash")
        runs = [_own(lines, folder / f"own-{repeat}") for repeat in range(REPEATS)]
        # The first run loads what is loaded once per process; datatrove does so before it is measured.
        own = _say("the stage", count, *sorted(runs, key=lambda run: sum(run[0].values()))[REPEATS // 2])
        peer = _say("datatrove", count, *_peer(lines, folder / "peer"))
        print(f"ratio: {own / peer:.1f}")
        print(f"{'step':24} {'MB/s':>8}  {'beside':34} {'MB/s':>8} {'over':>7}")
        for step in steps(folder, list(documents(count))):
            turns: list[list[float]] = []
            # Alternating, so that a busy moment of the machine affects both.
            while len(turns) < REPEATS or sum(map(sum, turns)) < LEAST_SECONDS:
                turns.append([_processor(task) for task in (step.stage, step.bare) if task])
            stage, *beside = map(median, zip(*turns, strict=True))
            line = f"{step.name:24} {step.size / 1e6 / stage:8.1f}"
            for bare in beside:
                line += f"  {step.library:34} {step.size / 1e6 / bare:8.1f} {stage / bare - 1:+7.0%}"
            print(line, flush=True)


def _say(name: str, count: int, seconds: dict[str, float], left: dict[str, int]) -> float:
    rate = count / sum(seconds.values())
    parts = ", ".join(f"{step} {value:.2f} s" for step, value in seconds.items())
    print(
        f"{name}: {rate:,.0f} documents/s a core ({parts}); "
        f"{left['filters']:,} pass the filters, {left['final']:,} are left",
        flush=True,
    )
    return rate


def _own(lines: Path, out: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Measures processor seconds of filters and MinHash, and counts documents after each."""
    splits = tuple(plan_splits([Source(kind="files", path=str(lines))], 1))
    prepare = PreparePhase(splits, out / "prepared", out / "quarantine", 1, MeasureSettings(RULES))
    rows = rows_in_a_band(SIMILARITY)
    reports = []
    filters = _processor(lambda: reports.extend(prepare(index) for index in range(len(splits))))
    kept = sum(report["kept"]["documents"] for report in reports)
    parts = tuple(Part(prepare.output(split), "", split.source) for split in splits)

    def deduplicate() -> None:
        indexing = IndexPhase(parts, None, out / "index", rows)
        counts = tuple(indexing(part)["documents"] for part in range(len(parts)))
        index = Index(tuple(map(indexing.output, range(len(parts)))), counts, 0, (0,) * len(parts))
        phase = ClusterPhase(index, PERMUTATIONS // rows, 1, least_agreement(SIMILARITY), True, out / "pairs")
        for task in range(phase.tasks()):
            phase(task)
        pairs = [phase.output(task) for task in range(phase.tasks())]
        decisions = decide(index, pairs[:1], pairs[1:], "longest")
        dropped.append(int((decisions["status"] != KEPT).sum()))

    dropped: list[int] = []
    minhash = _processor(deduplicate)
    return {"filters": filters, "MinHash": minhash}, {"filters": kept, "final": kept - dropped[0]}


def _peer(lines: Path, out: Path) -> tuple[dict[str, float], dict[str, int]]:
    command = [
        str(on_their_own(PEER)),
        str(Path(__file__).parent / "peers" / "datatrove_peer.py"),
        str(lines),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"datatrove failed:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["documents"]


def _processor(task: Callable[[], object]) -> float:
    """Measures processor seconds of a task, those of child processes included."""
    start = _spent()
    task()
    return _spent() - start


def _spent() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [child.cpu_times() for child in psutil.Process().children()]
    children = sum(times.user + times.system for times in alive)
    return time.process_time() + ended.ru_utime + ended.ru_stime + children


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("documents", nargs="?", type=int, default=DOCUMENTS)
    main(words.parse_args().documents)
