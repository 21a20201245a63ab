"""Cleaned documents with their signals, kept on disk so that other thresholds need not read the sources again."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.recipe.corpus import PersonalData, Rules
from cluster.run.files import is_remote, look_up
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.clean.gutenberg import without_license
from pipelines.corpus.clean.language import identify
from pipelines.corpus.clean.pii import replace
from pipelines.corpus.clean.text import clean
from pipelines.corpus.filter.signals import VERSION, Signals, measure
from pipelines.corpus.read.bad_record import BadRecord
from pipelines.corpus.read.sources import Document, Split, read_split
from pipelines.corpus.tasks import StepTimer, written_to_the_side

BATCH = 500
_KEY = b"triptych"
_TEXT = ("id", "source", "text", "language", "read_bytes")


@dataclass(frozen=True)
class Measured:
    """Some documents after cleaning, the language of each, its UTF-8 bytes before cleaning, and its signals.

    Languages are ISO 639-1 codes with the signal `language_probability`, or empty where nobody asked.
    """

    documents: list[Document]
    languages: list[str]
    read_bytes: list[int]
    signals: Signals


@dataclass(frozen=True)
class Measuring:
    """What is done to every document before it is judged.

    Attributes:
        rules: whose signals are measured, and whose lines are taken out; their bounds do not matter here.
        personal_data: kinds to replace.
        language: whether it is identified.
    """

    rules: Rules | None = None
    personal_data: tuple[PersonalData, ...] = ()
    language: bool = False


def measured_key(split: Split, measuring: Measuring) -> str:
    """A hash of all that decides what `measure_split` gives: split, files, lines taken out, data replaced.

    The bounds on signals are not part of it. Of a file that is cut or elsewhere, size and time stand for the bytes:
    else the file would be read once a part.
    """
    rules = measuring.rules
    lines = rules.c4.model_dump(exclude={"sentences", "curly_brackets"}) if rules and rules.c4 else None
    files = [asdict(look_up(file)) if split.span or is_remote(file) else _content(file) for file in split.files]
    given = {**asdict(split), "name": "", "license": None}
    return fingerprint([VERSION, given, files, lines, sorted(measuring.personal_data), measuring.language])


def _content(file: str) -> str:
    return file_fingerprint(Path(file))


def measure_split(split: Split, measuring: Measuring, clock: StepTimer) -> Iterator[Measured | BadRecord]:
    """Reads, cleans and measures a split's documents, `BATCH` at a time; passes on what cannot be read.

    How often each kind of personal data was replaced is a signal too: personal_email, personal_phone …
    """
    batch: list[Document] = []
    for item in clock.reading("read", read_split(split)):
        if isinstance(item, BadRecord):
            yield item
            continue
        batch.append(item)
        if len(batch) == BATCH:
            yield _measure(batch, measuring, clock)
            batch = []
    if batch:
        yield _measure(batch, measuring, clock)


def _measure(batch: list[Document], measuring: Measuring, clock: StepTimer) -> Measured:
    read_bytes = [len(document.text.encode("utf-8", "surrogatepass")) for document in batch]
    with clock.step("clean"):
        texts = [without_license(clean(document.text)) for document in batch]
    languages, probabilities = [""] * len(texts), None
    if measuring.language:
        with clock.step("identify languages"):
            languages, probabilities = identify(texts)
    with clock.step("replace personal data"):
        replaced = [replace(text, measuring.personal_data) for text in texts]
    with clock.step("measure"):
        texts, signals = measure([text for text, _ in replaced], measuring.rules)
    if probabilities is not None:
        signals["language_probability"] = probabilities
    for kind in measuring.personal_data:
        signals[f"personal_{kind}"] = np.array([float(found.get(kind, 0)) for _, found in replaced])
    documents = [Document(old.id, old.source, text) for old, text in zip(batch, texts, strict=True)]
    return Measured(documents, languages, read_bytes, signals)


def kept(items: Iterable[Measured | BadRecord], path: Path, key: str) -> Iterator[Measured | BadRecord]:
    """Passes everything on and writes it to `path`, which appears when all has passed."""
    bad: list[BadRecord] = []
    with written_to_the_side(path) as side:
        writer = None
        for item in items:
            if isinstance(item, BadRecord):
                bad.append(item)
            else:
                table = _to_table(item)
                writer = writer or pq.ParquetWriter(side, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=BATCH)
            yield item
        writer = writer or pq.ParquetWriter(side, pa.schema([(name, pa.string()) for name in _TEXT]))
        writer.add_key_value_metadata({_KEY: json.dumps({"key": key, "bad": [asdict(item) for item in bad]})})
        writer.close()


def load(path: Path, key: str) -> Iterator[Measured | BadRecord] | None:
    """What `kept` wrote under that key, the bad records first, or None if there is nothing."""
    if not path.exists():
        return None
    found = json.loads((pq.read_metadata(path).metadata or {}).get(_KEY, b"{}"))
    if found.get("key") != key:
        return None
    return chain([BadRecord(**item) for item in found["bad"]], _read(path))


def _to_table(batch: Measured) -> pa.Table:
    columns = [
        [document.id for document in batch.documents],
        [document.source for document in batch.documents],
        [document.text for document in batch.documents],
        batch.languages,
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
                table["language"].to_pylist(),
                table["read_bytes"].to_pylist(),
                {name: table[name].to_numpy() for name in table.column_names if name not in _TEXT},
            )
