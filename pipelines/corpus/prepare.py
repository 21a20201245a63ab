"""The first phase, part by part: read, clean, measure, judge, hash and sign every document of a split."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cluster.corpus_recipe import PersonalData, Rules
from pipelines.corpus.bad import Bad
from pipelines.corpus.duplicates import SIGNATURE_BYTES, signatures
from pipelines.corpus.measured import Measured, kept, load, measure_split, measured_key
from pipelines.corpus.parts import written_to_the_side
from pipelines.corpus.rules import bounds, reasons_to_drop
from pipelines.corpus.sources import Document, Split

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
EXCLUDED = pa.schema([(name, pa.string()) for name in ("id", "source", "reason", "text")])


@dataclass(frozen=True)
class Preparation:
    """Writes the documents of split `index` that are worth training on to `folder`.

    Attributes:
        personal_data: kinds to replace.
        quarantine: folder for a line on every record that cannot be read.
        measured: folder to keep all documents and their signals in, and to take them from if they are there.
        excluded: folder for the documents that the rules drop, None to forget them.
    """

    splits: tuple[Split, ...]
    folder: Path
    quarantine: Path
    minimum_words: int
    rules: Rules | None = None
    personal_data: tuple[PersonalData, ...] = ()
    measured: Path | None = None
    excluded: Path | None = None

    def __call__(self, index: int) -> dict[str, Any]:
        split = self.splits[index]
        rules = bounds(self.rules, self.minimum_words)
        found = {"documents": 0, "bytes": 0}
        left = {"documents": 0, "bytes": 0}
        dropped: Counter[str] = Counter()
        bad_records: list[Bad] = []
        personal: Counter[str] = Counter()
        with ExitStack() as stack:
            good_writer = _open(stack, self.output(split), SCHEMA)
            bad_writer = _open(stack, self.excluded / f"{split.name}.parquet", EXCLUDED) if self.excluded else None
            for batch in self._measured(split):
                if isinstance(batch, Bad):
                    bad_records.append(batch)
                    continue
                found["documents"] += len(batch.documents)
                found["bytes"] += sum(batch.read_bytes)
                personal.update({kind: int(batch.signals[f"personal_{kind}"].sum()) for kind in self.personal_data})
                reasons = reasons_to_drop(batch.signals, rules)
                judged = list(zip(batch.documents, reasons, strict=True))
                bad = [(document, reason) for document, reason in judged if reason]
                dropped.update(reason for _, reason in bad)
                table = _table([document for document, reason in judged if not reason], split.deduplicate)
                good_writer.write_table(table)
                if bad_writer:
                    rows = [(document.id, document.source, reason, document.text) for document, reason in bad]
                    bad_writer.write_table(_rows(rows, EXCLUDED))
                left["documents"] += table.num_rows
                left["bytes"] += sum(table["bytes"].to_pylist())
        self._set_aside(split, bad_records)
        return {
            "source": split.source,
            "licence": split.licence,
            "found": found,
            "kept": left,
            "dropped": dict(sorted(dropped.items())),
            "personal_data": dict(personal),
            "bad": len(bad_records),
            "first_bad": bad_records[0].reason if bad_records else None,
        }

    def output(self, split: Split) -> Path:
        return self.folder / f"{split.name}.parquet"

    def outputs(self, split: Split) -> tuple[Path, ...]:
        """All files that a call writes."""
        folders = [folder for folder in (self.folder, self.measured, self.excluded) if folder]
        return tuple(folder / f"{split.name}.parquet" for folder in folders)

    def _set_aside(self, split: Split, bad: list[Bad]) -> None:
        if bad:
            with written_to_the_side(self.quarantine / f"{split.name}.jsonl") as side:
                side.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in bad), encoding="utf-8")

    def _measured(self, split: Split) -> Iterator[Measured | Bad]:
        if self.measured is None:
            return measure_split(split, self.rules, self.personal_data)
        key, path = measured_key(split, self.rules, self.personal_data), self.measured / f"{split.name}.parquet"
        return load(path, key) or kept(measure_split(split, self.rules, self.personal_data), path, key)


def _open(stack: ExitStack, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    side = stack.enter_context(written_to_the_side(path))
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
