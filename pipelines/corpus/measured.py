"""Cleaned documents with their signals, kept on disk so that other thresholds need not read the sources again."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.corpus_recipe import PersonalData, Rules
from cluster.run import file_fingerprint, fingerprint
from pipelines.corpus.bad import Bad
from pipelines.corpus.clean import clean
from pipelines.corpus.parts import written_to_the_side
from pipelines.corpus.personal_data import replace
from pipelines.corpus.signals import VERSION, Signals, measure
from pipelines.corpus.sources import Document, Split, read_split

BATCH = 500
_KEY = b"triptych"
_TEXT = ("id", "source", "text", "read_bytes")


@dataclass(frozen=True)
class Measured:
    """Some documents after cleaning, the UTF-8 bytes of each before it, and the signals of each."""

    documents: list[Document]
    read_bytes: list[int]
    signals: Signals


def measured_key(split: Split, rules: Rules | None, personal_data: Sequence[PersonalData]) -> str:
    """A hash of all that decides what `measure_split` gives: split, files' bytes, lines taken out, data replaced.

    The bounds on signals are not part of it.
    """
    lines = rules.c4.model_dump(exclude={"sentences", "curly_brackets"}) if rules and rules.c4 else None
    files = [file_fingerprint(Path(file)) for file in split.files]
    return fingerprint([VERSION, {**asdict(split), "name": "", "licence": None}, files, lines, sorted(personal_data)])


def measure_split(split: Split, rules: Rules | None, personal_data: Sequence[PersonalData]) -> Iterator[Measured | Bad]:
    """Reads, cleans and measures a split's documents, `BATCH` at a time; passes on what cannot be read.

    How often each kind of personal data was replaced is a signal too: personal_email, personal_phone …
    """
    batch: list[Document] = []
    for item in read_split(split):
        if isinstance(item, Bad):
            yield item
            continue
        batch.append(item)
        if len(batch) == BATCH:
            yield _measure(batch, rules, personal_data)
            batch = []
    if batch:
        yield _measure(batch, rules, personal_data)


def _measure(batch: list[Document], rules: Rules | None, personal_data: Sequence[PersonalData]) -> Measured:
    read_bytes = [len(document.text.encode("utf-8", "surrogatepass")) for document in batch]
    cleaned = [replace(clean(document.text), personal_data) for document in batch]
    texts, signals = measure([text for text, _ in cleaned], rules)
    for kind in personal_data:
        signals[f"personal_{kind}"] = np.array([float(found.get(kind, 0)) for _, found in cleaned])
    documents = [Document(old.id, old.source, text) for old, text in zip(batch, texts, strict=True)]
    return Measured(documents, read_bytes, signals)


def kept(items: Iterable[Measured | Bad], path: Path, key: str) -> Iterator[Measured | Bad]:
    """Passes everything on and writes it to `path`, which appears when all has passed."""
    bad: list[Bad] = []
    with written_to_the_side(path) as side:
        writer = None
        for item in items:
            if isinstance(item, Bad):
                bad.append(item)
            else:
                table = _to_table(item)
                writer = writer or pq.ParquetWriter(side, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=BATCH)
            yield item
        writer = writer or pq.ParquetWriter(side, pa.schema([(name, pa.string()) for name in _TEXT]))
        writer.add_key_value_metadata({_KEY: json.dumps({"key": key, "bad": [asdict(item) for item in bad]})})
        writer.close()


def load(path: Path, key: str) -> Iterator[Measured | Bad] | None:
    """What `kept` wrote under that key, the bad records first, or None if there is nothing."""
    if not path.exists():
        return None
    found = json.loads((pq.read_metadata(path).metadata or {}).get(_KEY, b"{}"))
    if found.get("key") != key:
        return None
    return chain([Bad(**item) for item in found["bad"]], _read(path))


def _to_table(batch: Measured) -> pa.Table:
    columns = [
        [document.id for document in batch.documents],
        [document.source for document in batch.documents],
        [document.text for document in batch.documents],
    ]
    texts = dict(zip(_TEXT, [pa.array(column, pa.string()) for column in columns], strict=False))
    return pa.table({**texts, "read_bytes": pa.array(batch.read_bytes, pa.int64()), **batch.signals})


def _read(path: Path) -> Iterator[Measured]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rows = zip(*(table[name].to_pylist() for name in _TEXT[:3]), strict=True)
            yield Measured(
                [Document(*row) for row in rows],
                table["read_bytes"].to_pylist(),
                {name: table[name].to_numpy() for name in table.column_names if name not in _TEXT},
            )
