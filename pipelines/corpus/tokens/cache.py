"""Token ids of documents, found by the hash of their text, so that a tokenizer encodes none twice.

tokens/part-00000.parquet: digest, ids; the file says which tokenizer they are of. The folder stays with the corpus, and
the next build of it takes over what it can.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.corpus.dedup.index import fixed
from pipelines.corpus.dedup.split import DROPPED
from pipelines.corpus.filter.cache import BATCH
from pipelines.corpus.tasks import written_to_the_side
from pipelines.corpus.tokens.encode import encode_documents

# In the name of a part whose documents come once more, behind the name that it had before.
READ_AGAIN = "-again-"
_KEY = b"triptych"
SCHEMA = pa.schema([("digest", pa.binary(16)), ("ids", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class Tokens:
    """Encodes the chosen documents of parts, each once.

    Attributes:
        folder: for a file a part.
        tokenizer: its tokenizer.json.
        fingerprint: of that file's bytes.
    """

    folder: Path
    tokenizer: Path
    fingerprint: str

    def encode(self, prepared: Path, choices: Path) -> int:
        """Sees to it that every chosen document of a part has its ids on disk; returns how many had to be encoded."""
        old, wanted = self._stored(prepared), np.load(choices) != DROPPED
        new = 0
        if old and old.has_all(batch["digest"] for batch in _rows(prepared, wanted, ["digest"])):
            return new
        path = self.file(prepared)
        with (
            written_to_the_side(path) as side,
            pq.ParquetWriter(side, SCHEMA.with_metadata({_KEY: self.fingerprint}), compression="zstd") as writer,
        ):
            for batch in _rows(prepared, wanted, ["digest", "text"]):
                found: list[NDArray[np.int32] | None] = [None] * batch.num_rows
                if old:
                    found = old.find(batch["digest"])
                missing = [row for row, ids in enumerate(found) if ids is None]
                texts = batch["text"].take(pa.array(missing, pa.int64())).to_pylist()
                for row, ids in zip(missing, encode_documents(self.tokenizer, texts), strict=True):
                    found[row] = ids
                new += len(missing)
                writer.write_table(_table(batch["digest"], [ids for ids in found if ids is not None]))
        return new

    def of(self, prepared: Path) -> "CachedTokens":
        """The ids of a part that `encode` went through."""
        return CachedTokens(self.file(prepared))

    def file(self, prepared: Path) -> Path:
        """Where the ids of a prepared part's documents are, however often it is read."""
        return self.folder / f"{prepared.stem.partition(READ_AGAIN)[0]}.parquet"

    def _stored(self, prepared: Path) -> "CachedTokens | None":
        path = self.file(prepared)
        if not path.exists() or (pq.read_metadata(path).metadata or {}).get(_KEY) != self.fingerprint.encode():
            return None
        return CachedTokens(path)


class CachedTokens:
    """The ids in one file, of which a group of rows is held at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        groups = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64)
        columns = [batch["digest"] for batch in self._file.iter_batches(columns=["digest"])]
        digests = np.concatenate([np.empty((0, 2), np.uint64), *map(_halves, columns)])
        self._order = np.argsort(digests[:, 0], kind="stable")
        self._digests = digests[self._order]
        self._held = -1
        self._ids: list[NDArray[np.int32]] = []

    def has_all(self, digests: Iterator[pa.Array]) -> bool:
        """Whether all are here."""
        return all((self._places(some) >= 0).all() for some in digests)

    def find(self, digests: pa.Array) -> list[NDArray[np.int32] | None]:
        """The ids of every document, None of one that is not here."""
        return [self._at(place) if place >= 0 else None for place in self._places(digests).tolist()]

    def ids(self, digests: pa.Array) -> list[NDArray[np.int32]]:
        """The ids of every document, all of which are here."""
        return [self._at(place) for place in self._places(digests).tolist()]

    def _places(self, digests: pa.Array) -> NDArray[np.int64]:
        """The row of each, -1 where there is none."""
        asked = _halves(digests)
        if not len(self._digests):
            return np.full(len(asked), -1)
        near = np.minimum(np.searchsorted(self._digests[:, 0], asked[:, 0]), len(self._digests) - 1)
        # Two that share half a hash, one pair in 2^64, count as not found, and are encoded.
        return np.where((self._digests[near] == asked).all(axis=1), self._order[near], -1)

    def _at(self, place: int) -> NDArray[np.int32]:
        group = int(np.searchsorted(self._ends, place, side="right"))
        if group != self._held:
            column = self._file.read_row_group(group, columns=["ids"])["ids"].combine_chunks()
            values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
            self._ids = [values[start:end] for start, end in pairwise(offsets)]
            self._held = group
        return self._ids[place - (int(self._ends[group - 1]) if group else 0)]


def _rows(prepared: Path, wanted: NDArray[np.bool_], columns: list[str]) -> Iterator[pa.RecordBatch]:
    start = 0
    with pq.ParquetFile(prepared) as file:
        for batch in file.iter_batches(BATCH, columns=columns):
            chosen = batch.filter(pa.array(wanted[start : start + batch.num_rows]))
            start += batch.num_rows
            if chosen.num_rows:
                yield chosen


def _table(digests: pa.Array, ids: list[NDArray[np.int32]]) -> pa.Table:
    ends = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    column = pa.ListArray.from_arrays(ends, np.concatenate([np.empty(0, np.int32), *ids]))
    return pa.Table.from_arrays([digests, column], schema=SCHEMA)


def _halves(digests: pa.Array) -> NDArray[np.uint64]:
    """(n, 2)."""
    halves: NDArray[np.uint64] = fixed(pa.chunked_array([digests]), np.dtype(np.uint64)).reshape(-1, 2)
    return halves
