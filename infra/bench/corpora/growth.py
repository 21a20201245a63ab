"""Measures processor time a document of every phase of the corpus stage at 1, 4 and 16 times a corpus.

python -m infra.bench.corpora.growth [documents]        of the smallest corpus, of 4 KB each; default 800

Runs the phases in this process, a part of 100 documents after the other as Ray's workers do, and the driver's work
beside them: the tasks as they are sent, and the decisions on duplicates. A phase is flat if 16 times the documents take
at most a tenth more of time each.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq
from ray import cloudpickle

from infra.bench.corpora.documents import documents, write_lines
from pipelines.corpus.dedup.cluster import ClusterPhase, decide
from pipelines.corpus.dedup.index import Index, IndexPhase
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.dedup.spans import MARK_BITS, RemoveSpansPhase, RepeatedSpansPhase, SpanPhase
from pipelines.corpus.dedup.split import SplitPhase
from pipelines.corpus.filter.cache import MeasureSettings
from pipelines.corpus.prepare import PreparePhase
from pipelines.corpus.read.sources import InputSplit
from pipelines.corpus.tables import Part, save_array
from pipelines.corpus.tasks import Phase, Report
from pipelines.corpus.tokens.cache import TokenCache
from pipelines.corpus.tokens.sample import SamplePhase
from pipelines.corpus.tokens.shards import ShardPhase
from pipelines.corpus.tokens.stage import TokenizePhase
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer

DOCUMENTS, PART = 800, 100
# Multiples of the smallest corpus, so mixed that a busy moment of the machine affects all.
ORDER = (1, 4, 1, 16, 1, 4, 1, 16, 1, 4, 1)
CONTEXT, SIMILARITY = 512, 0.8
FLAT = 1.1

T = TypeVar("T")


def main(count: int) -> None:
    """Prints microseconds a document by phase and size, and which phases are flat."""
    runs: dict[int, list[dict[str, float]]] = {}
    for times in ORDER:
        with tempfile.TemporaryDirectory(prefix="triptych-growth-") as name:
            seconds = _Corpus(Path(name), times * count).run()
        runs.setdefault(times, []).append({phase: found / (times * count) for phase, found in seconds.items()})
    sizes = sorted(runs)
    print(f"{'phase':24}" + "".join(f"{f'{times}x':>10}" for times in sizes) + f"{'16x/1x':>10}")
    for phase in runs[sizes[0]][0]:
        found = [median(run[phase] for run in runs[times]) for times in sizes]
        ratio = found[-1] / found[0]
        row = "".join(f"{1e6 * seconds:10,.1f}" for seconds in found)
        print(f"{phase:24}{row}{ratio:10.2f}  {'flat' if ratio <= FLAT else 'grows'}")


class _Corpus:
    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.seconds = folder, dict[str, float]()
        self.splits = tuple(self._split(number, texts) for number, texts in enumerate(_parts(count)))

    def run(self) -> dict[str, float]:
        """Runs all phases; returns the processor seconds of each."""
        out, rows = self.folder, rows_in_a_band(SIMILARITY)
        prepare = PreparePhase(self.splits, out / "prepared", out / "quarantine", 5, MeasureSettings())
        self._all("read, clean and filter", prepare)
        files = tuple(prepare.output(split) for split in self.splits)
        parts = tuple(Part(file, "", "s") for file in files)
        self._repeated_spans(parts)
        indexing = IndexPhase(parts, None, out / "index", rows)
        counts = tuple(report["documents"] for report in self._all("sign and index", indexing))
        index = Index(tuple(map(indexing.output, range(len(parts)))), counts, 0, (0,) * len(parts))
        cluster = ClusterPhase(index, PERMUTATIONS // rows, 1, least_agreement(SIMILARITY), True, out / "pairs")
        self._timed("find duplicates", lambda: [cluster(task) for task in range(cluster.tasks())])
        pairs = [cluster.output(task) for task in range(cluster.tasks())]
        decisions = self._timed("driver: decide", lambda: decide(index, pairs[:1], pairs[1:], "longest"))
        bounds = tuple(np.searchsorted(decisions["document"], index.starts).tolist())
        decided = save_array(out / "decisions.npy", decisions)
        starts = tuple(index.starts.tolist())
        split = SplitPhase(parts, starts, decided, bounds, None, out / "assigned", out / "duplicates", 0.02, 1)
        self._all("split", split)
        assigned = tuple(map(split.assignments_file, range(len(parts))))
        self._all("sample", SamplePhase(files, assigned, 0.1, 1, out / "sample"))
        save_tokenizer(train_tokenizer(islice(documents(200), 200), 2048), out / "tokenizer", CONTEXT)
        tokens = TokenCache(out / "tokens", out / "tokenizer" / "tokenizer.json", "")
        tokenize = TokenizePhase(files, assigned, tokens, out / "rows", out / "documents", CONTEXT, (), 0)
        reports = self._all("tokenize and pack", tokenize)
        train = tuple(tokenize.rows_file(place, "train") for place in range(len(parts)))
        shards = ShardPhase(
            out / "shards", {"train": train}, {"train": tuple(r["train"]["rows"] for r in reports)}, CONTEXT, 1
        )
        self._all("shuffle and shard", shards, len(shards.shards()))
        return self.seconds

    def _repeated_spans(self, parts: tuple[Part, ...]) -> None:
        """Removes repeated sentences as C4's rules do; the other phases go on with all of them."""
        out = self.folder
        hashing = SpanPhase(parts, out / "spans")
        self._all("hash sentences", hashing)
        starts = np.cumsum([0, *(pq.read_metadata(part.file).num_rows for part in parts)])
        folders = tuple(map(hashing.output, range(len(parts))))
        finding = RepeatedSpansPhase(folders, tuple(starts[:-1].tolist()), 1, out / "repeated")
        self._timed("find repeated sentences", lambda: finding(0))
        marks = np.load(finding.output(0))
        bounds = np.searchsorted(marks, starts.astype(np.uint64) << np.uint64(MARK_BITS)).tolist()
        removing = RemoveSpansPhase(
            parts, tuple(starts.tolist()), finding.output(0), tuple(bounds), 3, out / "unrepeated", None
        )
        self._all("remove repeated sentences", removing)

    def _split(self, number: int, texts: list[str]) -> InputSplit:
        file = write_lines(self.folder / f"lines-{number:05d}.jsonl", iter(texts))
        return InputSplit(f"part-{number:05d}", "s", "files", (str(file),), "text", None, True, 1)

    def _all(self, name: str, phase: Phase, count: int | None = None) -> list[Report]:
        tasks = range(len(self.splits) if count is None else count)
        sent = self._timed("driver: send tasks", lambda: [cloudpickle.dumps(phase.only(task)) for task in tasks])
        return self._timed(name, lambda: [cloudpickle.loads(task)(0) for task in sent])

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        gc.collect()
        start = time.process_time()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return result


def _parts(count: int) -> Iterator[list[str]]:
    texts = documents(count)
    while part := list(islice(texts, PART)):
        yield part


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("documents", nargs="?", type=int, default=DOCUMENTS)
    main(words.parse_args().documents)
