"""The first phase, part by part: read, clean, measure, judge, hash and sign every document of a split."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint
from pipelines.corpus.clean.language import wanted
from pipelines.corpus.dedup.minhash import SIGNATURE_BYTES, signatures
from pipelines.corpus.filter import histograms
from pipelines.corpus.filter.cache import Measured, Measuring, kept, load, measure_split, measured_key
from pipelines.corpus.filter.rules import WANTED, bounds, reasons_to_drop
from pipelines.corpus.filter.signals import Signals
from pipelines.corpus.read.bad_record import BadRecord
from pipelines.corpus.read.sources import Document, Split
from pipelines.corpus.tasks import StepTimer

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("bytes", pa.int64()),
        ("digest", pa.binary(16)),
        ("signature", pa.binary(SIGNATURE_BYTES)),  # null in a source whose near-duplicates are kept
    ]
)
# Of what a rule drops, so much is shown in stats.json.
_EXAMPLE_CHARACTERS = 200
EXCLUDED = pa.schema([(name, pa.string()) for name in ("id", "source", "reason", "text")])


@dataclass(frozen=True)
class Preparation:
    """Writes the documents of split `index` that are worth training on to `folder`.

    Attributes:
        quarantine: folder for a line on every record that cannot be read.
        measuring: what is done to documents before they are judged.
        languages: to keep, all if there are none; `language_probability` is the least of being in one of them.
        measured: folder to keep all documents and their signals in, and to take them from if they are there.
        excluded: folder for the documents that the rules drop, None to forget them.
    """

    splits: tuple[Split, ...]
    folder: Path
    quarantine: Path
    min_words: int
    measuring: Measuring
    languages: tuple[str, ...] = ()
    language_probability: float = 0.0
    measured: Path | None = None
    excluded: Path | None = None

    def __call__(self, index: int) -> dict[str, Any]:
        split = self.splits[index]
        rules = bounds(self.measuring.rules, self.min_words, self.language_probability if self.languages else None)
        clock = StepTimer()
        found = {"documents": 0, "bytes": 0}
        left = {"documents": 0, "bytes": 0}
        dropped: Counter[str] = Counter()
        dropped_bytes: Counter[str] = Counter()
        examples: dict[str, dict[str, str]] = {}
        bad_records: list[BadRecord] = []
        personal: Counter[str] = Counter()
        spread: dict[str, NDArray[np.int64]] = {}
        with ExitStack() as stack:
            good_writer = _open(stack, self.output(split), SCHEMA)
            bad_writer = _open(stack, self.excluded / f"{split.name}.parquet", EXCLUDED) if self.excluded else None
            for batch in self._measured(split, clock):
                if isinstance(batch, BadRecord):
                    bad_records.append(batch)
                    continue
                found["documents"] += len(batch.documents)
                found["bytes"] += sum(batch.read_bytes)
                kinds = self.measuring.personal_data
                personal.update({kind: int(batch.signals[f"personal_{kind}"].sum()) for kind in kinds})
                with clock.step("judge"):
                    for name, bins in histograms.count(batch.signals).items():
                        spread[name] = spread.get(name, 0) + bins
                    reasons = reasons_to_drop(self._signals(batch), rules)
                judged = list(zip(batch.documents, reasons, strict=True))
                bad = [(document, reason) for document, reason in judged if reason]
                for document, reason in bad:
                    dropped[reason] += 1
                    dropped_bytes[reason] += len(document.text.encode())
                    examples.setdefault(reason, {"id": document.id, "text": document.text[:_EXAMPLE_CHARACTERS]})
                with clock.step("hash and sign"):
                    table = _table([document for document, reason in judged if not reason], split.deduplicate)
                with clock.step("write"):
                    good_writer.write_table(table)
                    if bad_writer:
                        rows = [(document.id, document.source, reason, document.text) for document, reason in bad]
                        bad_writer.write_table(_rows(rows, EXCLUDED))
                left["documents"] += table.num_rows
                left["bytes"] += sum(table["bytes"].to_pylist())
        self._set_aside(split, bad_records)
        return {
            "source": split.source,
            "license": split.license,
            "found": found,
            "kept": left,
            "dropped": dict(sorted(dropped.items())),
            "dropped_bytes": dict(sorted(dropped_bytes.items())),
            "drop_examples": examples,
            "personal_data": dict(personal),
            "histograms": {name: bins.tolist() for name, bins in spread.items()},
            "bad": len(bad_records),
            "fingerprint": file_fingerprint(self.output(split)),
            "first_bad": bad_records[0].reason if bad_records else None,
            "seconds": clock.seconds,
        }

    def output(self, split: Split) -> Path:
        return self.folder / f"{split.name}.parquet"

    def outputs(self, split: Split) -> tuple[Path, ...]:
        """All files that a call writes."""
        folders = [folder for folder in (self.folder, self.measured, self.excluded) if folder]
        return tuple(folder / f"{split.name}.parquet" for folder in folders)

    def _set_aside(self, split: Split, bad: list[BadRecord]) -> None:
        if bad:
            with atomic_write(self.quarantine / f"{split.name}.jsonl") as side:
                side.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in bad), encoding="utf-8")

    def _signals(self, batch: Measured) -> Signals:
        if not self.languages:
            return batch.signals
        probabilities = batch.signals["language_probability"]
        return batch.signals | {WANTED: wanted(batch.languages, probabilities, self.languages)}

    def _measured(self, split: Split, clock: StepTimer) -> Iterator[Measured | BadRecord]:
        if self.measured is None:
            return measure_split(split, self.measuring, clock)
        key, path = measured_key(split, self.measuring), self.measured / f"{split.name}.parquet"
        return load(path, key) or kept(measure_split(split, self.measuring, clock), path, key)


def _open(stack: ExitStack, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    side = stack.enter_context(atomic_write(path))
    return stack.enter_context(pq.ParquetWriter(side, schema, compression="zstd"))


def _table(documents: list[Document], deduplicate: bool) -> pa.Table:
    texts = [document.text for document in documents]
    encoded = [text.encode("utf-8") for text in texts]
    signed = [row.tobytes() for row in signatures(texts)] if deduplicate else [None] * len(texts)
    rows = zip(
        [document.id for document in documents],
        [document.source for document in documents],
        texts,
        [len(data) for data in encoded],
        [xxhash.xxh3_128_digest(data) for data in encoded],
        signed,
        strict=True,
    )
    return _rows(list(rows), SCHEMA)


def _rows(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
