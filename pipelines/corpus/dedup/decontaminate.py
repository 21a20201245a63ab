"""Finds documents contaminated with evaluation data: n-grams of words that they share with an evaluation file.

N-grams match exactly, without case, punctuation and vowel points, and have 13 words by default (Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C), or 13 letters in scripts without spaces.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.errors import UserError
from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint
from pipelines.corpus.clean.words import folded, word_spans, words
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.tables import rows_at_once, save_array
from pipelines.corpus.tasks import Phase, Report

FOUND = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("item", pa.string()),
        ("start", pa.int64()),  # characters into the document's text
        ("end", pa.int64()),
        ("span", pa.string()),
    ]
)
_folded = lru_cache(maxsize=1 << 16)(folded)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Match(NamedTuple):
    """A passage that a document shares with an evaluation item, as characters [start, end) of the document."""

    item: str
    start: int
    end: int


class NGrams:
    """All n-grams of words in the texts of evaluation items.

    Attributes:
        items: number of items.
        too_short: number of items without a text of n words, which cannot be found.
    """

    def __init__(self, items: Iterator[tuple[str, list[str]]], n: int) -> None:
        self._n = n
        self._numbers: dict[str, int] = {}
        self._items: dict[tuple[str, ...], list[str]] = {}
        self.items = self.too_short = 0
        hashes = [np.empty(0, dtype=np.uint64)]
        for item, texts in items:
            self.items += 1
            found = [_words(text) for text in texts]
            self.too_short += all(len(text) < n for text in found)
            for text in found:
                for word in text:
                    # 0 stands for words of no item.
                    self._numbers.setdefault(word, len(self._numbers) + 1)
                hashes.append(self._hashes_of(text))
                for start in range(len(text) - n + 1):
                    holders = self._items.setdefault(tuple(text[start : start + n]), [])
                    if item not in holders[-1:]:
                        holders.append(item)
        self._hashes = np.unique(np.concatenate(hashes))

    def find(self, text: str) -> list[Match]:
        """Lists the longest passages that `text` shares with each item, by start and item."""
        found = _words(text)
        hashes = self._hashes_of(found)
        if not len(hashes) or not len(self._hashes):
            return []
        nearest = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        passages: dict[str, list[tuple[int, int]]] = {}
        for start in np.flatnonzero(self._hashes[nearest] == hashes).tolist():
            for item in self._items.get(tuple(found[start : start + self._n]), ()):
                mine = passages.setdefault(item, [])
                if mine and start < mine[-1][1]:
                    start_before, _ = mine.pop()
                    mine.append((start_before, start + self._n))
                else:
                    mine.append((start, start + self._n))
        if not passages:
            return []
        places = word_spans(text)
        matches = [
            Match(item, places[start][0], places[end - 1][1]) for item, mine in passages.items() for start, end in mine
        ]
        return sorted(matches, key=lambda match: (match.start, match.item))

    def _hashes_of(self, found: Sequence[str]) -> NDArray[np.uint64]:
        """Hashes every n-gram; n-grams with equal hashes are then compared word by word."""
        count = max(len(found) - self._n + 1, 0)
        numbers = np.fromiter((self._numbers.get(word, 0) for word in found), dtype=np.uint64, count=len(found))
        hashes = np.zeros(count, dtype=np.uint64)
        for place in range(self._n):
            hashes = hashes * _FACTOR + numbers[place : place + count]
        return hashes


@dataclass(frozen=True)
class DecontaminatePhase(Phase):
    """Lists the passages that part `index` shares with evaluation files, and the rows to leave out for them.

    Attributes:
        parts: part files.
        files: evaluation files.
        fingerprints: the fingerprints of the evaluation files' bytes.
        n: words of an n-gram.
        drop: whether contaminated documents are left out, or only counted.
        rows: folder for the numbers of the rows to leave out.
        found: folder for the passages, `FOUND`.
    """

    parts: tuple[Path, ...]
    files: tuple[Path, ...]
    fingerprints: tuple[str, ...]
    n: int
    drop: bool
    rows: Path
    found: Path

    def rows_file(self, index: int) -> Path:
        return self.rows / f"{self.parts[index].stem}.npy"

    def outputs(self, index: int) -> tuple[Path, ...]:
        """Lists the files that a task writes."""
        return self.rows_file(index), self.found / self.parts[index].name

    def only(self, index: int) -> "DecontaminatePhase":
        return replace(self, parts=(self.parts[index],))

    def __call__(self, index: int) -> Report:
        grams = _ngrams(self.files, self.fingerprints, self.n)
        items: Counter[str] = Counter()
        rows: list[int] = []
        row = -1
        rows_file, found_file = self.outputs(index)
        with (
            pq.ParquetFile(self.parts[index]) as file,
            atomic_write(found_file) as side,
            pq.ParquetWriter(side, FOUND, compression="zstd") as writer,
        ):
            for batch in file.iter_batches(rows_at_once(file), columns=["id", "source", "text"]):
                progress()
                found: list[tuple[Any, ...]] = []
                for document, source, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    row += 1
                    if matches := grams.find(text):
                        rows.append(row)
                        items.update({match.item for match in matches})
                        found += [(document, source, *match, text[match.start : match.end]) for match in matches]
                if found:
                    rows_found = [dict(zip(FOUND.names, passage, strict=True)) for passage in found]
                    writer.write_table(pa.Table.from_pylist(rows_found, schema=FOUND))
        save_array(rows_file, np.array(rows if self.drop else [], dtype=np.int64))
        return {"documents": len(rows), "items": dict(items), "looked_for": grams.items, "too_short": grams.too_short}


def read_items(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Reads the items of a JSON, JSONL, CSV, TSV or Parquet file: a name "FILE:ID", and every text in the item.

    The id is the field `id`, or else the position. A JSON file is a list of items or an object that contains one.

    Raises:
        UserError: the file cannot be read in the format of its suffix.
    """
    try:
        for place, record in enumerate(_records(file)):
            name = record.get("id", place) if isinstance(record, dict) else place
            yield f"{file.name}:{name}", list(_texts(record))
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"corpus.decontaminate: cannot read {file}: {error}; fix it or take it off the list") from error


def _records(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        yield from pq.read_table(file).to_pylist()
        return
    if file.suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        raise ValueError("only .json, .jsonl, .csv, .tsv and .parquet files are read")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if file.suffix == ".jsonl":
            yield from (json.loads(line) for line in stream if line.strip())
        elif file.suffix in (".csv", ".tsv"):
            yield from csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
        else:
            content = json.load(stream)
            lists = (
                [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
            )
            yield from content if isinstance(content, list) else max(lists, key=len, default=[content])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _words(text: str) -> list[str]:
    return list(map(_folded, words(text)))


@lru_cache(maxsize=1)
def _ngrams(files: tuple[Path, ...], fingerprints: tuple[str, ...], n: int) -> NGrams:
    for file, expected in zip(files, fingerprints, strict=True):
        if file_fingerprint(file) != expected:
            raise UserError(f"corpus.decontaminate: {file} was changed while it was read; run the command again")
    return NGrams((item for file in files for item in read_items(file)), n)
