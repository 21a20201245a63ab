"""Keeps cleaned documents with their signals on disk, so that a build with other thresholds need not read the sources.

signals/part-00000.parquet: id, source, text, language, read_bytes and a column per signal; the file's metadata hold the
key that it was measured under, the bad records and the numbers of the skipped ones.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.recipe.corpus import PersonalData, Rules
from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint, fingerprint
from cluster.run.storage.files import file_info
from cluster.run.storage.remote import is_remote
from pipelines.corpus.filter import classifier
from pipelines.corpus.filter.signals import VERSION, Signals
from pipelines.corpus.read.records import BadRecord, Document, Skipped
from pipelines.corpus.read.sources import InputSplit
from pipelines.corpus.tables import BATCH

_KEY = b"triptych"
_TEXT = ("id", "source", "text", "language", "read_bytes")


@dataclass(frozen=True)
class MeasuredBatch:
    """Cleaned documents with the language of each, its UTF-8 bytes before cleaning, and its signals.

    Languages are ISO 639-1 codes, whose probability is the signal `language_probability`; they are empty strings if
    languages are not identified.
    """

    documents: list[Document]
    languages: list[str]
    read_bytes: list[int]
    signals: Signals


@dataclass(frozen=True)
class MeasureSettings:
    """The settings of cleaning and measuring.

    Attributes:
        rules: sets of rules whose signals are measured and whose lines are removed; their bounds have no influence.
        personal_data: kinds to replace with placeholders.
        language: whether to identify languages.
        bad_words: words and phrases of C4's list, in lower case.
        classifier: file of the quality classifier's weights, and its fingerprint.
    """

    rules: Rules | None = None
    personal_data: tuple[PersonalData, ...] = ()
    language: bool = False
    bad_words: tuple[str, ...] = ()
    classifier: tuple[Path, str] | None = None


def cache_key(split: InputSplit, settings: MeasureSettings) -> str:
    """Hashes everything that the measured documents of a split depend on: the split, its files and the settings.

    The bounds on signals are not part of the key. A file that is remote or shared by several splits enters with its
    size and modification time in place of its bytes, since hashing would read it once per split.
    """
    rules = settings.rules
    judged = {"sentences", "curly_brackets", "bad_words", "repeated_spans"}
    lines = rules.c4.model_dump(exclude=judged) if rules and rules.c4 else None
    files = [_state(file) if split.span or is_remote(file) else _content(file) for file in split.files]
    given = {**split.identity(), "name": "", "license": None}
    scored = [classifier.VERSION, settings.classifier[1]] if settings.classifier else None
    found = [sorted(settings.personal_data), settings.language, settings.bad_words, scored]
    return fingerprint([VERSION, given, files, lines, found])


def store(
    items: Iterable[MeasuredBatch | BadRecord | Skipped], path: Path, key: str
) -> Iterator[MeasuredBatch | BadRecord | Skipped]:
    """Passes all items on and writes them to `path`, which appears after the last one."""
    bad: list[BadRecord] = []
    skipped: Counter[str] = Counter()
    with atomic_write(path) as side:
        writer = None
        for item in items:
            if isinstance(item, BadRecord):
                bad.append(item)
            elif isinstance(item, Skipped):
                skipped[item.kind] += item.records
            else:
                table = _to_table(item)
                writer = writer or pq.ParquetWriter(side, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=BATCH)
            yield item
        writer = writer or pq.ParquetWriter(side, pa.schema([(name, pa.string()) for name in _TEXT]))
        held = {"key": key, "bad": [asdict(item) for item in bad], "skipped": sorted(skipped.items())}
        writer.add_key_value_metadata({_KEY: json.dumps(held)})
        writer.close()


def load(path: Path, key: str) -> Iterator[MeasuredBatch | BadRecord | Skipped] | None:
    """Reads what `store` wrote under the same key, bad and skipped records first; returns None if there is nothing."""
    if not path.exists():
        return None
    found = json.loads((pq.read_metadata(path).metadata or {}).get(_KEY, b"{}"))
    if found.get("key") != key:
        return None
    skipped = [Skipped(kind, records) for kind, records in found["skipped"]]
    return chain([BadRecord(**item) for item in found["bad"]], skipped, _read(path))


def _state(file: str) -> tuple[int, int]:
    info = file_info(file)
    return info.size, info.changed


def _content(file: str) -> str:
    return file_fingerprint(Path(file))


def _to_table(batch: MeasuredBatch) -> pa.Table:
    columns = [
        [document.id for document in batch.documents],
        [document.source for document in batch.documents],
        [document.text for document in batch.documents],
        batch.languages,
    ]
    texts = dict(zip(_TEXT, [pa.array(column, pa.string()) for column in columns], strict=False))
    return pa.table({**texts, "read_bytes": pa.array(batch.read_bytes, pa.int64()), **batch.signals})


def _read(path: Path) -> Iterator[MeasuredBatch]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rows = zip(*(table[name].to_pylist() for name in _TEXT[:3]), strict=True)
            yield MeasuredBatch(
                [Document(*row) for row in rows],
                table["language"].to_pylist(),
                table["read_bytes"].to_pylist(),
                {name: table[name].to_numpy() for name in table.column_names if name not in _TEXT},
            )
