"""The work of a task and of the driver grows no faster than the corpus."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from ray import cloudpickle
from rich.progress import Progress

from pipelines.corpus import heartbeat, tasks
from pipelines.corpus.dedup.cluster import ClusterPhase, component_pairs, earliest, merged
from pipelines.corpus.dedup.decontaminate import DecontaminatePhase
from pipelines.corpus.dedup.index import Index, IndexPhase, write_part_index
from pipelines.corpus.dedup.merge import MergePhase, groups, merged_index
from pipelines.corpus.dedup.minhash import PERMUTATIONS
from pipelines.corpus.dedup.split import DROPPED, HELD_OUT, TRAIN, SplitPhase, document_position
from pipelines.corpus.filter.cache import MeasureSettings
from pipelines.corpus.prepare import PreparePhase, StepTimer, measured_batches
from pipelines.corpus.read.sources import InputSplit
from pipelines.corpus.tables import PREPARED, Part, map_array
from pipelines.corpus.tokens.cache import TokenCache
from pipelines.corpus.tokens.mix import CountTokensPhase
from pipelines.corpus.tokens.order import Feistel, order
from pipelines.corpus.tokens.sample import SamplePhase
from pipelines.corpus.tokens.shards import SHARD_ROWS, ShardPhase
from pipelines.corpus.tokens.stage import TokenizePhase


def phases(count: int) -> list[tasks.Phase]:
    """Returns every phase over a number of parts."""
    files = tuple(Path(f"/corpus/part-{number:05d}.parquet") for number in range(count))
    parts = tuple(Part(file, "0" * 32, "source") for file in files)
    splits = tuple(
        InputSplit(file.stem, "source", "files", (str(file),), "text", None, True, 1, stored_bytes=100)
        for file in files
    )
    folder, numbers = Path("/corpus"), tuple([7] * (count + 1))
    cache = TokenCache(folder, folder, "0")
    return [
        PreparePhase(splits, folder, folder, 1, MeasureSettings()),
        DecontaminatePhase(files, (folder,), ("0",), 13, True, folder, folder),
        IndexPhase(parts, files, folder, 8),
        MergePhase((files[:1],) * count, files),
        SplitPhase(parts, numbers, folder, numbers, files, folder, folder, 0.1, 1),
        CountTokensPhase(files, files, cache, folder),
        SamplePhase(files, files, 0.5, 1, folder),
        TokenizePhase(files, files, cache, folder, folder, 64, (), 0),
        # Rows of as many parts as a shard has rows: more parts add nothing to it.
        ShardPhase(folder, {"train": files * 2000}, {"train": (1000,) * 2000 * count}, 64, 1),
    ]


def test_a_task_gets_its_own_part_alone() -> None:
    few, many = (
        {type(phase).__name__: len(cloudpickle.dumps(phase.only(0))) for phase in phases(count)} for count in (1, 8)
    )
    assert len(few) == 9
    assert {name: many[name] / few[name] for name in few} == pytest.approx(dict.fromkeys(few, 1.0), rel=0.05)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 1000, 4097])
def test_the_order_of_rows_is_a_permutation_computed_in_pieces(rows: int) -> None:
    shuffle = Feistel(rows, 7)
    whole = shuffle.at(np.arange(rows))
    assert sorted(whole.tolist()) == list(range(rows))
    pieces = [shuffle.at(np.arange(start, min(start + 100, rows))) for start in range(0, rows, 100)]
    assert np.array_equal(np.concatenate(pieces), whole)
    if rows > 5:
        assert not np.array_equal(whole, Feistel(rows, 8).at(np.arange(rows)))


def test_the_order_of_many_rows_is_random() -> None:
    """Of a random order neighbors are as far apart as any two rows, a third of all, and no place prefers a part."""
    rows = 3_000_000
    found = order(rows, 5).at(np.arange(100_000) + 1_000_000)
    assert len(np.unique(found)) == 100_000
    assert np.abs(np.diff(found)).mean() / rows == pytest.approx(1 / 3, abs=0.005)
    counts = np.histogram(found, 30, (0, rows))[0]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 60  # chi-square, 29 degrees of freedom: p = 0.0006


def test_a_shard_is_what_the_order_says(tmp_path: Path) -> None:
    counts, context = (3, 0, SHARD_ROWS, 40), 2
    files = tuple(tmp_path / f"{number}.rows" for number in range(len(counts)))
    numbers = np.arange(sum(counts), dtype=np.int32)
    for file, own in zip(files, np.split(numbers, np.cumsum(counts)[:-1]), strict=True):
        np.broadcast_to(own[:, None, None], (len(own), 2, context)).tofile(file)
    phase = ShardPhase(tmp_path / "out", {"train": files}, {"train": counts}, context, 3)
    assert [phase(index)["rows"] for index in range(2)] == [SHARD_ROWS, 43]
    found = pa.concat_tables([pq.read_table(phase.path(*shard)) for shard in phase.shards()])
    assert found["row_id"].to_pylist() == numbers.tolist()
    assert [ids[0] for ids in found["input_ids"].to_pylist()] == order(len(numbers), 3).at(numbers).tolist()


@pytest.mark.parametrize("merge", [component_pairs, earliest])
def test_links_of_many_files_are_merged_in_linear_time(
    tmp_path: Path, merge: Callable[[np.ndarray], np.ndarray]
) -> None:
    draw = np.random.default_rng(4)
    pairs = np.sort(draw.integers(0, 400_000, (400_000, 2)), axis=1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    files = [tmp_path / f"{number}.npy" for number in range(40)]
    for file, some in zip(files, np.array_split(pairs, len(files)), strict=True):
        np.save(file, some)
    worked = []

    def counted(some: np.ndarray) -> np.ndarray:
        worked.append(len(some))
        return merge(some)

    assert np.array_equal(merged(files, counted), merge(pairs))
    assert sum(worked) <= 4 * len(pairs)


def test_a_task_that_looks_for_duplicates_opens_a_file_of_each_merged_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, opened = np.random.default_rng(3), list[Path]()

    def counted(file: Path) -> np.ndarray:
        opened.append(file)
        return map_array(file)

    for module in ("cluster", "index"):
        monkeypatch.setattr(f"pipelines.corpus.dedup.{module}.map_array", counted)
    rows, every = np.arange(5), np.ones(5, dtype=bool)
    folders = tuple(tmp_path / f"part-{number:05d}" for number in range(12))
    for path in folders:
        digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), 5, [None, pa.py_buffer(draw.bytes(80))])
        columns = {"id": ["a"] * 5, "source": ["s"] * 5, "bytes": [1] * 5, "digest": digests, "quality": [1.0] * 5}
        signed = draw.integers(0, 2**32, (5, PERMUTATIONS), dtype=np.uint32)
        write_part_index(path, pa.table(columns), every, rows, signed, 8)
    index = Index(folders, (5,) * 12, 0, (0,) * 12)
    grouped = groups(index, 3)
    outputs = tuple(tmp_path / f"merged-{number}" for number in range(len(grouped)))
    merge = MergePhase(tuple(tuple(folders[part] for part in group) for group in grouped), outputs)
    for number in range(len(grouped)):
        merge(number)
    cluster = ClusterPhase(merged_index(index, grouped, outputs), 2, 2, 0.7, True, tmp_path / "pairs")
    for task in range(cluster.tasks()):
        cluster(task)
    assert {file.parent for file in opened} == set(outputs)
    assert Counter(file.name for file in opened) == {"exact.npy": 2 * 4, "bands.npy": 2 * 2 * 4}
    # Of documents that all have signatures, these are found without a look at anything else.
    opened.clear()
    assert cluster.index.signatures(np.array([1, 40, 59])).shape == (3, PERMUTATIONS)
    assert Counter(file.name for file in opened) == {"signatures.npy": 3}


def test_the_tokenizers_sample_is_drawn_from_the_training_texts(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1000)]
    digests = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
    rows = {"id": texts, "source": ["s"] * 1000, "text": texts, "bytes": [8] * 1000, "digest": digests}
    pq.write_table(pa.table({**rows, "quality": pa.nulls(1000, pa.float32())}, schema=PREPARED), tmp_path / "a.parquet")
    assigned = np.array([TRAIN, HELD_OUT, TRAIN, DROPPED] * 250, dtype=np.uint8)
    np.save(tmp_path / "a.npy", assigned)
    phase = SamplePhase((tmp_path / "a.parquet",), (tmp_path / "a.npy",), 0.3, 5, tmp_path / "sample")
    report = phase.only(0)(0)
    found = pq.read_table(phase.output(0))["text"].to_pylist()
    kept = zip(texts, digests, assigned == TRAIN, strict=True)
    assert found == [text for text, digest, own in kept if own and document_position(digest, 6) < 0.3]
    assert report == {"documents": len(found)}
    assert 100 < len(found) < 200


def test_reading_a_file_sends_heartbeats(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"a text of some words, number {number}"}) + "\n" for number in range(2000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    split = InputSplit("p", "s", "files", (str(tmp_path / "a.jsonl.gz"),), "text", None, True, 1)
    beat = tmp_path / "p.heartbeat"
    assert heartbeat.last_heartbeat(beat) == 0
    with heartbeat.heartbeats(beat):
        seen = [heartbeat.last_heartbeat(beat) > 0 for _ in measured_batches(split, MeasureSettings(), StepTimer())]
        assert seen == [True] * 4
    assert not beat.exists()
    heartbeat.progress()
    assert not beat.exists()


@pytest.mark.slow
def test_a_part_that_goes_on_outlasts_the_deadline(ray_session: None, tmp_path: Path) -> None:
    parts = [tasks.Task("whole file", "key", ())]
    with Progress(disable=True) as bar:
        # Starts the worker, which takes longer than the deadline.
        tasks.run_tasks("start", tmp_path / "start", parts, _end_at_once, bar, deadline=60)
        assert tasks.run_tasks("read", tmp_path / "read", parts, _go_on, bar, deadline=1.5) == [{"beats": 12}]


def _end_at_once(_: int) -> tasks.Report:
    return {}


def _go_on(_: int) -> tasks.Report:
    for _ in range(12):
        heartbeat.progress()
        time.sleep(0.2)
    return {"beats": 12}
