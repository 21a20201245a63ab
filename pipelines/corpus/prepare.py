"""First phase: reads, cleans, measures and filters the documents of one input split, and writes those that pass.

It runs the packages `read`, `clean` and `filter` in this order, a batch at a time, in one task per split.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from rich.progress import Progress

from cluster import personal_data
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus import heartbeat
from pipelines.corpus.clean.language import identify
from pipelines.corpus.clean.text import clean, without_license
from pipelines.corpus.counts import Counts
from pipelines.corpus.filter.cache import MeasuredBatch, MeasureSettings, cache_key, load, store
from pipelines.corpus.filter.classifier import load as load_classifier
from pipelines.corpus.filter.rules import (
    WANTED_LANGUAGE,
    bounds,
    read_bad_words,
    reasons_to_drop,
    wanted_language,
)
from pipelines.corpus.filter.signals import Signals, measure, punctuated_lines
from pipelines.corpus.read.records import BadRecord, Document, Skipped
from pipelines.corpus.read.sources import InputSplit, read_split
from pipelines.corpus.tables import BATCH, EXCLUDED, PREPARED
from pipelines.corpus.tasks import Phase, Report, Task, run_tasks

T = TypeVar("T")

# Measuring takes about 40 bytes of memory a character: 100 documents of 400 KB took 1.9 GB.
_BATCH_CHARACTERS = 4 << 20


def prepare(
    recipe: Recipe,
    splits: Sequence[InputSplit],
    out: Path,
    progress: Progress,
    classifier: tuple[Path, str] | None = None,
) -> tuple[list[Report], list[Path]]:
    """Runs the phase over all splits; returns their reports and part files, in order.

    Args:
        classifier: file of the quality classifier's weights, and its fingerprint.

    Raises:
        UserError: a source cannot be read.
        DeadlineError: no split finished within the recipe's deadline.
    """
    corpus = recipe.corpus
    phase = PreparePhase(
        splits=tuple(splits),
        folder=out / "work" / "prepared",
        quarantine=out / "quarantine",
        min_words=corpus.min_words,
        settings=MeasureSettings(
            rules=corpus.rules,
            personal_data=tuple(corpus.personal_data),
            language=bool(corpus.languages),
            bad_words=read_bad_words(corpus.rules),
            classifier=classifier,
        ),
        languages=tuple(corpus.languages),
        language_probability=corpus.language_probability,
        min_score=corpus.classifier.min_score if corpus.classifier else None,
        signals=out / "signals" if corpus.rules or corpus.languages or classifier else None,
        excluded=out / "excluded" if corpus.keep_excluded else None,
        quality=corpus.keep_policy == "quality",
    )
    fields = {"min_words", "rules", "languages", "language_probability", "personal_data", "keep_excluded"}
    scored = [classifier and classifier[1], phase.min_score]
    filters = [corpus.model_dump(include=fields), phase.settings.bad_words, phase.quality, scored]
    tasks = [Task(split.name, fingerprint([split.identity(), filters]), phase.outputs(split)) for split in splits]
    done, deadline = out / "work" / "done" / "prepare", recipe.cluster.deadline_seconds
    reports = run_tasks("read, clean and filter", done, tasks, phase, progress, deadline)
    return reports, [phase.output(split) for split in splits]


@dataclass(frozen=True)
class PreparePhase(Phase):
    """Writes the documents of split `index` that pass the filters to `folder`.

    Attributes:
        quarantine: folder for the records that cannot be read, a JSON line each.
        settings: the settings of cleaning and measuring.
        languages: ISO 639-1 codes to keep, all if empty.
        language_probability: least probability of being in one of `languages`.
        min_score: least score of the quality classifier; None without one.
        signals: folder of the signal cache; None to measure every time.
        excluded: folder for the documents that the filters drop; None to discard them.
        quality: whether to measure the column `quality`.
    """

    splits: tuple[InputSplit, ...]
    folder: Path
    quarantine: Path
    min_words: int
    settings: MeasureSettings
    languages: tuple[str, ...] = ()
    language_probability: float = 0.0
    min_score: float | None = None
    signals: Path | None = None
    excluded: Path | None = None
    quality: bool = False

    def only(self, index: int) -> "PreparePhase":
        return replace(self, splits=(self.splits[index],))

    def __call__(self, index: int) -> Report:
        split = self.splits[index]
        probability = self.language_probability if self.languages else None
        rules = bounds(self.settings.rules, self.min_words, probability, self.min_score)
        timer, counts = StepTimer(), Counts()
        with ExitStack() as stack:
            kept_writer = _open(stack, self.output(split), PREPARED)
            excluded_file = self.excluded / f"{split.name}.parquet" if self.excluded else None
            excluded_writer = _open(stack, excluded_file, EXCLUDED) if excluded_file else None
            for batch in self._measured(split, timer):
                if isinstance(batch, BadRecord):
                    counts.bad.append(batch)
                    continue
                if isinstance(batch, Skipped):
                    counts.skipped[batch.kind] += batch.records
                    continue
                with timer.step("filter"):
                    counts.add_read(batch, self.settings)
                    signals = self._signals(batch)
                    counts.add_not_judged(signals, rules)
                    judged = list(zip(batch.documents, reasons_to_drop(signals, rules), strict=True))
                    dropped = [(document, reason) for document, reason in judged if reason]
                    counts.add_dropped(dropped)
                with timer.step("hash"):
                    table = _table([document for document, reason in judged if not reason], self.quality)
                    counts.add_kept(table)
                with timer.step("write"):
                    kept_writer.write_table(table)
                    if excluded_writer:
                        rows = [(document.id, document.source, reason, document.text) for document, reason in dropped]
                        excluded_writer.write_table(_rows(rows, EXCLUDED))
        self._quarantine(split, counts.bad)
        return {
            "source": split.source,
            "license": split.license,
            "stored_bytes": split.stored_bytes,
            "skipped_files": list(split.skipped_files),
            "fingerprint": file_fingerprint(self.output(split)),
            "seconds": timer.seconds,
            **counts.report(),
        }

    def output(self, split: InputSplit) -> Path:
        return self.folder / f"{split.name}.parquet"

    def outputs(self, split: InputSplit) -> tuple[Path, ...]:
        """Lists the files that the task of a split writes."""
        folders = [folder for folder in (self.folder, self.signals, self.excluded) if folder]
        return tuple(folder / f"{split.name}.parquet" for folder in folders)

    def _measured(self, split: InputSplit, timer: "StepTimer") -> Iterator[MeasuredBatch | BadRecord | Skipped]:
        if self.signals is None:
            return measured_batches(split, self.settings, timer)
        key, path = cache_key(split, self.settings), self.signals / f"{split.name}.parquet"
        return load(path, key) or store(measured_batches(split, self.settings, timer), path, key)

    def _signals(self, batch: MeasuredBatch) -> Signals:
        if not self.languages:
            return batch.signals
        probabilities = batch.signals["language_probability"]
        return batch.signals | {WANTED_LANGUAGE: wanted_language(batch.languages, probabilities, self.languages)}

    def _quarantine(self, split: InputSplit, bad: Sequence[BadRecord]) -> None:
        if bad:
            with atomic_write(self.quarantine / f"{split.name}.jsonl") as side:
                side.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in bad), encoding="utf-8")


def measured_batches(
    split: InputSplit, settings: MeasureSettings, timer: "StepTimer"
) -> Iterator[MeasuredBatch | BadRecord | Skipped]:
    """Reads, cleans and measures a split's documents, `BATCH` or 4 million characters at a time.

    Bad and skipped records are passed on.

    The number of values replaced per kind of personal data is a signal too: personal_email, personal_phone, …
    """
    batch: list[Document] = []
    characters = 0
    for item in timer.reading("read", read_split(split)):
        heartbeat.progress()
        if isinstance(item, BadRecord | Skipped):
            yield item
            continue
        batch.append(item)
        characters += len(item.text)
        if len(batch) == BATCH or characters >= _BATCH_CHARACTERS:
            yield _measure(batch, settings, timer)
            batch, characters = [], 0
    if batch:
        yield _measure(batch, settings, timer)


class StepTimer:
    """Adds up the seconds of a task by step.

    Attributes:
        seconds: the seconds of every step so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def reading(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Passes the items on and times the iterator alone, not its consumer."""
        spent, start = 0.0, time.perf_counter()
        for item in items:
            spent += time.perf_counter() - start
            yield item
            start = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + spent + time.perf_counter() - start


def _measure(batch: list[Document], settings: MeasureSettings, timer: StepTimer) -> MeasuredBatch:
    read_bytes = [len(document.text.encode("utf-8", "surrogatepass")) for document in batch]
    with timer.step("clean"):
        texts = [without_license(clean(document.text)) for document in batch]
    languages, probabilities = [""] * len(texts), None
    if settings.language:
        with timer.step("identify languages"):
            languages, probabilities = identify(texts)
    with timer.step("replace personal data"):
        replaced = [personal_data.replace(text, settings.personal_data) for text in texts]
    known = languages if settings.language else None
    with timer.step("measure"):
        texts, signals = measure([text for text, _ in replaced], settings.rules, settings.bad_words, known)
    if settings.classifier:
        with timer.step("score quality"):
            signals["quality_score"] = load_classifier(*settings.classifier).scores(texts)
    if probabilities is not None:
        signals["language_probability"] = probabilities
    for kind in settings.personal_data:
        signals[f"personal_{kind}"] = np.array([float(found.get(kind, 0)) for _, found in replaced])
    documents = [Document(old.id, old.source, text) for old, text in zip(batch, texts, strict=True)]
    return MeasuredBatch(documents, languages, read_bytes, signals)


def _open(stack: ExitStack, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    side = stack.enter_context(atomic_write(path))
    return stack.enter_context(pq.ParquetWriter(side, schema, compression="zstd"))


def _table(documents: Sequence[Document], quality: bool) -> pa.Table:
    texts = [document.text for document in documents]
    encoded = [text.encode("utf-8") for text in texts]
    rows = zip(
        [document.id for document in documents],
        [document.source for document in documents],
        texts,
        [len(data) for data in encoded],
        [xxhash.xxh3_128_digest(data) for data in encoded],
        punctuated_lines(texts).tolist() if quality else [None] * len(texts),
        strict=True,
    )
    return _rows(list(rows), PREPARED)


def _rows(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
