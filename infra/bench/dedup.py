"""Measures seconds and peak memory of clustering synthetic signatures, at 1/16, a quarter and all of them.

python -m infra.bench.dedup [documents]        default 2,000,000; one core, without Ray

Each phase runs in a process of its own, task after task as one worker would run them. Of 20 documents 14 are unique, 5
agree with another in 0.9 of their places, and one is the same in all groups of 20: a bucket in every band.
"""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.dedup.cluster import KEPT, ClusterPhase, decide
from pipelines.corpus.dedup.index import Index, write_part_index
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.tables import PREPARED

DOCUMENTS = 2_000_000
# The same at every size, to show that a task's memory does not grow.
PART_DOCUMENTS = 25_000
TASK_KEYS = 125_000
SIMILARITY = 0.8
ROWS = rows_in_a_band(SIMILARITY)


def main(documents: int) -> None:
    """Prints a line per size."""
    for size in (documents // 16, documents // 4, documents):
        with tempfile.TemporaryDirectory(prefix="triptych-dedup-") as name:
            folder = Path(name)
            files, counts = _write(folder / "prepared", size), _counts(size)
            indexed = _alone(_index, files, folder)
            shutil.rmtree(folder / "prepared")
            clustered = _alone(_cluster, files, counts, folder)
            decided = _alone(_decide, files, counts, folder)
        seconds = indexed[0] + clustered[0] + decided[0]
        print(
            f"{size:,} signatures: {seconds:.1f} s ({size / seconds:,.0f}/s), {decided[2]:,} duplicates; "
            f"index {indexed[0]:.1f} s, {indexed[1]:,} MB; cluster {clustered[0]:.1f} s, {clustered[1]:,} MB; "
            f"decide {decided[0]:.1f} s, {decided[1]:,} MB",
            flush=True,
        )


def _counts(size: int) -> tuple[int, ...]:
    return tuple(min(PART_DOCUMENTS, size - start) for start in range(0, size, PART_DOCUMENTS))


def _write(folder: Path, size: int) -> tuple[Path, ...]:
    """Writes prepared parts without text, and the signatures of each beside it."""
    folder.mkdir()
    files = []
    for part, count in enumerate(_counts(size)):
        rng = np.random.default_rng(part)
        signed = rng.integers(0, 2**32, (count, PERMUTATIONS), dtype=np.uint32)
        kind = np.arange(count) % 20
        like = np.flatnonzero((kind >= 1) & (kind <= 5))
        changed = rng.random((len(like), PERMUTATIONS)) < 0.1
        signed[like] = np.where(changed, signed[like], signed[like - kind[like]])
        signed[kind == 19] = 7
        columns = [
            pa.array([f"{part}:{row}" for row in range(count)]),
            pa.array(["synthetic"] * count),
            pa.array([""] * count),
            pa.array(np.full(count, 4000)),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(rng.bytes(16 * count))]),
            pa.nulls(count, pa.float32()),
        ]
        files.append(folder / f"part-{part:05d}.parquet")
        pq.write_table(pa.Table.from_arrays(columns, schema=PREPARED), files[-1], compression="none")
        np.save(files[-1].with_suffix(".npy"), signed)
    return tuple(files)


def _index(files: tuple[Path, ...], folder: Path) -> int:
    for file in files:
        signed, table = np.load(file.with_suffix(".npy")), pq.read_table(file)
        every = np.arange(len(signed))
        write_part_index(folder / "index" / file.stem, table, every >= 0, every, signed, ROWS)
    return len(files)


def _phase(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> ClusterPhase:
    index = Index(tuple(folder / "index" / file.stem for file in files), counts, 0, (0,) * len(files))
    ranges = -(-sum(counts) // TASK_KEYS)
    return ClusterPhase(index, PERMUTATIONS // ROWS, ranges, least_agreement(SIMILARITY), True, folder / "pairs")


def _cluster(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> int:
    phase = _phase(files, counts, folder)
    return sum(phase(task)["pairs"] for task in range(phase.tasks()))


def _decide(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> int:
    phase = _phase(files, counts, folder)
    pairs = [phase.output(task) for task in range(phase.tasks())]
    decisions = decide(phase.index, pairs[: phase.ranges], pairs[phase.ranges :], "longest")
    return int((decisions["status"] != KEPT).sum())


def _alone(phase: Callable[..., int], *arguments: object) -> tuple[float, int, int]:
    """Seconds, growth of the peak of resident memory in MB (mapped files included), and result of a phase."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_measured, phase, *arguments).result()


def _measured(phase: Callable[..., int], *arguments: object) -> tuple[float, int, int]:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = phase(*arguments)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.monotonic() - start, grown >> 10, result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS)
