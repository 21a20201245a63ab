"""Seconds and peak memory of finding the duplicates among synthetic signatures, at 1/16, a quarter and the whole.

python -m infra.bench.dedup [documents]        2,000,000 unless told; one core, without Ray

Each phase runs in a process of its own, task after task as one worker would run them. Of 20 documents 14 are alone, 5
are like another in 0.9 of their places, and one says the same as one in 20 everywhere: a bucket in every band.
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

from pipelines.corpus.dedup.cluster import KEPT, Documents, Grouping, decide
from pipelines.corpus.dedup.index import Indexing
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.filter.stage import SCHEMA

DOCUMENTS = 2_000_000
# The same at every size, so that a task's memory can be seen not to grow.
DOCUMENTS_A_PART = 25_000
KEYS_A_TASK = 125_000
SIMILARITY = 0.8
ROWS = rows_in_a_band(SIMILARITY)


def main(documents: int) -> None:
    """Prints a line a size."""
    for size in (documents // 16, documents // 4, documents):
        with tempfile.TemporaryDirectory(prefix="triptych-dedup-") as name:
            folder = Path(name)
            files, counts = _write(folder / "prepared", size), _counts(size)
            indexed = _alone(_index, files, folder)
            shutil.rmtree(folder / "prepared")
            grouped = _alone(_group, files, counts, folder)
            decided = _alone(_decide, files, counts, folder)
        seconds = indexed[0] + grouped[0] + decided[0]
        print(
            f"{size:,} signatures: {seconds:.1f} s ({size / seconds:,.0f}/s), {decided[2]:,} duplicates; "
            f"index {indexed[0]:.1f} s, {indexed[1]:,} MB; group {grouped[0]:.1f} s, {grouped[1]:,} MB; "
            f"decide {decided[0]:.1f} s, {decided[1]:,} MB",
            flush=True,
        )


def _counts(size: int) -> tuple[int, ...]:
    return tuple(min(DOCUMENTS_A_PART, size - start) for start in range(0, size, DOCUMENTS_A_PART))


def _write(folder: Path, size: int) -> tuple[Path, ...]:
    """Prepared parts without text."""
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
            _fixed(np.frombuffer(rng.bytes(16 * count), dtype=np.uint8), 16),
            _fixed(signed.reshape(-1).view(np.uint8), signed.itemsize * PERMUTATIONS),
        ]
        files.append(folder / f"part-{part:05d}.parquet")
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), files[-1], compression="none")
    return tuple(files)


def _fixed(data: np.ndarray, width: int) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(data) // width, [None, pa.py_buffer(data)])


def _index(files: tuple[Path, ...], folder: Path) -> int:
    task = Indexing(files, None, folder / "index", ROWS, quality=False)
    return sum(task(part)["documents"] for part in range(len(files)))


def _grouping(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> Grouping:
    indexes = tuple(folder / "index" / file.stem for file in files)
    documents = Documents(indexes, counts, known=0, sources=(0,) * len(files))
    ranges = -(-sum(counts) // KEYS_A_TASK)
    return Grouping(documents, PERMUTATIONS // ROWS, ranges, least_agreement(SIMILARITY), True, folder / "links")


def _group(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> int:
    task = _grouping(files, counts, folder)
    return sum(task(index)["links"] for index in range(task.tasks()))


def _decide(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> int:
    task = _grouping(files, counts, folder)
    links = [task.output(index) for index in range(task.tasks())]
    fates = decide(task.documents, links[: task.ranges], links[task.ranges :], "longest")
    return int((fates["fate"] != KEPT).sum())


def _alone(phase: Callable[..., int], *arguments: object) -> tuple[float, int, int]:
    """Seconds, MB that the peak of resident memory grew by (mapped files included) and result of a phase."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_measured, phase, *arguments).result()


def _measured(phase: Callable[..., int], *arguments: object) -> tuple[float, int, int]:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = phase(*arguments)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.monotonic() - start, grown >> 10, result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS)
