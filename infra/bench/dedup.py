"""Measures processor time and peak memory of clustering synthetic signatures, at 1/16, a quarter and all of them.

python -m infra.bench.dedup documents [count]   default 2,000,000; one core, without Ray
python -m infra.bench.dedup links [count]       the driver's merge of as many links, default 50,000,000

Each phase runs in a process of its own, task after task as one worker would run them. Of 20 documents 14 are unique, 5
agree with another in 0.9 of their places, and one is the same in all groups of 20: a bucket in every band. Parts have
as many documents as of 4 KB; a task has 1/32 of the keys, and a merge 1/32 of the documents, of those of the stage, so
that their numbers grow here as they do from 4 to 64 million documents.
"""

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.dedup.cluster import KEPT, KEYS_AT_ONCE, ClusterPhase, component_pairs, decide, merged
from pipelines.corpus.dedup.index import Index, write_part_index
from pipelines.corpus.dedup.merge import PARTS_AT_ONCE, MergePhase, groups, merged_index
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.tables import PREPARED

DOCUMENTS, LINKS = 2_000_000, 50_000_000
# The same at every size, to show that a task's memory does not grow.
PART_DOCUMENTS = 2_000
TASK_KEYS = KEYS_AT_ONCE // 32
MERGED_PARTS = PARTS_AT_ONCE // 32
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
            gathered = _alone(_merge, files, counts, folder)
            clustered = _alone(_cluster, files, counts, folder)
            decided = _alone(_decide, files, counts, folder)
        phases = {"index": indexed, "merge": gathered, "cluster": clustered, "decide": decided}
        seconds = sum(taken for taken, _, _ in phases.values())
        each = "; ".join(f"{name} {taken:.1f} s, {memory:,} MB" for name, (taken, memory, _) in phases.items())
        rate = f"{size:,} signatures: {seconds:.1f} s, {1e6 * seconds / size:.1f} µs each"
        print(f"{rate}, {decided[2]:,} duplicates; {each}", flush=True)


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


def links(count: int) -> None:
    """Prints the driver's seconds and memory for as many links in 15 files, at 1/16, a quarter and all of them."""
    for size in (count // 16, count // 4, count):
        with tempfile.TemporaryDirectory(prefix="triptych-links-") as name:
            seconds, memory, found = _alone(_merge_links, _write_links(Path(name), size))
        print(
            f"{size:,} links: {seconds:.1f} s, {1e9 * seconds / size:.0f} ns a link, {memory:,} MB; {found:,} are left"
        )


def _write_links(folder: Path, size: int) -> tuple[Path, ...]:
    """Writes links of documents to one of the 100 before, as many as documents: nearly all are in clusters."""
    draw = np.random.default_rng(5)
    files = tuple(folder / f"band-{band:02d}.npy" for band in range(1 + PERMUTATIONS // ROWS))
    for file in files:
        later = draw.integers(100, size, size // len(files))
        np.save(file, np.stack([later - draw.integers(1, 100, len(later)), later], axis=1))
    return files


def _merge_links(files: tuple[Path, ...]) -> int:
    return len(merged(files, component_pairs))


def _index_of(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> tuple[Index, MergePhase]:
    index = Index(tuple(folder / "index" / file.stem for file in files), counts, 0, (0,) * len(files))
    grouped = groups(index, MERGED_PARTS)
    outputs = tuple(folder / "merged" / str(group) for group in range(len(grouped)))
    phase = MergePhase(tuple(tuple(index.folders[part] for part in group) for group in grouped), outputs)
    return merged_index(index, grouped, outputs), phase


def _merge(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> int:
    _, phase = _index_of(files, counts, folder)
    return sum(phase(group)["documents"] for group in range(len(phase.groups)))


def _phase(files: tuple[Path, ...], counts: tuple[int, ...], folder: Path) -> ClusterPhase:
    index, _ = _index_of(files, counts, folder)
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
    """Runs a phase in a process of its own; returns processor seconds, growth of the peak of resident memory in MB
    (mapped files included), and the result."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_measured, phase, *arguments).result()


def _measured(phase: Callable[..., int], *arguments: object) -> tuple[float, int, int]:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = phase(*arguments)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.process_time() - start, grown >> 10, result


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", nargs="?", choices=["documents", "links"], default="documents")
    words.add_argument("count", nargs="?", type=int)
    given = words.parse_args()
    if given.what == "links":
        links(given.count or LINKS)
    else:
        main(given.count or DOCUMENTS)
