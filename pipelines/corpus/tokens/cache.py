"""Keeps token ids of documents by the hash of their text, so that a tokenizer encodes no document twice.

tokens/part-00000.parquet: digest, ids; the file's metadata name the tokenizer. The folder stays with the corpus, so
that the next build reuses the ids of unchanged documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.run.atomic import atomic_write
from pipelines.corpus.dedup.split import DROPPED
from pipelines.corpus.tables import fixed_width, selected_rows
from pipelines.corpus.tokens.encode import encode_documents

# Follows a part's name in the name of a further repetition of it.
REPEATED = "-repeat-"
_KEY = b"triptych"
SCHEMA = pa.schema([("digest", pa.binary(16)), ("ids", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class TokenCache:
    """Encodes the documents of parts that are not dropped, each once.

    Attributes:
        folder: gets a file per part.
        tokenizer: a tokenizer.json.
        fingerprint: the fingerprint of that file's bytes.
    """

    folder: Path
    tokenizer: Path
    fingerprint: str

    def encode(self, part: Path, assignments: Path) -> int:
        """Encodes the documents of a part that are not cached; returns their number.

        Args:
            assignments: file with DROPPED, TRAIN or HELD_OUT of each row.
        """
        old, wanted = self._stored(part), np.load(assignments) != DROPPED
        new = 0
        if old and old.has_all(batch["digest"] for batch in selected_rows(part, wanted, ["digest"])):
            return new
        path = self.file(part)
        with (
            atomic_write(path) as side,
            pq.ParquetWriter(side, SCHEMA.with_metadata({_KEY: self.fingerprint}), compression="zstd") as writer,
        ):
            for batch in selected_rows(part, wanted, ["digest", "text"]):
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

    def of(self, part: Path) -> "CachedTokens":
        """Opens the ids of a part that was encoded before."""
        return CachedTokens(self.file(part))

    def file(self, part: Path) -> Path:
        """Returns the path of the file with the ids of a part, which all repetitions of the part share."""
        return self.folder / f"{part.stem.partition(REPEATED)[0]}.parquet"

    def _stored(self, part: Path) -> "CachedTokens | None":
        path = self.file(part)
        if not path.exists() or (pq.read_metadata(path).metadata or {}).get(_KEY) != self.fingerprint.encode():
            return None
        return CachedTokens(path)


class CachedTokens:
    """Token ids in one file, of which one row group is in memory at a time."""

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
        """Tests that the ids of all documents are cached."""
        return all((self._places(some) >= 0).all() for some in digests)

    def find(self, digests: pa.Array) -> list[NDArray[np.int32] | None]:
        """Looks up the ids of every document, None if they are not cached."""
        return [self._at(place) if place >= 0 else None for place in self._places(digests).tolist()]

    def ids(self, digests: pa.Array) -> list[NDArray[np.int32]]:
        """Looks up the ids of documents that are all cached."""
        return [self._at(place) for place in self._places(digests).tolist()]

    def _places(self, digests: pa.Array) -> NDArray[np.int64]:
        """Finds the row of each document, -1 if there is none; (n,)."""
        asked = _halves(digests)
        if not len(self._digests):
            return np.full(len(asked), -1)
        near = np.minimum(np.searchsorted(self._digests[:, 0], asked[:, 0]), len(self._digests) - 1)
        # Documents that share half a hash, one pair in 2^64, count as not found and are encoded again.
        return np.where((self._digests[near] == asked).all(axis=1), self._order[near], -1)

    def _at(self, place: int) -> NDArray[np.int32]:
        group = int(np.searchsorted(self._ends, place, side="right"))
        if group != self._held:
            column = self._file.read_row_group(group, columns=["ids"])["ids"].combine_chunks()
            values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
            self._ids = [values[start:end] for start, end in pairwise(offsets)]
            self._held = group
        return self._ids[place - (int(self._ends[group - 1]) if group else 0)]


def _table(digests: pa.Array, ids: list[NDArray[np.int32]]) -> pa.Table:
    ends = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    column = pa.ListArray.from_arrays(ends, np.concatenate([np.empty(0, np.int32), *ids]))
    return pa.Table.from_arrays([digests, column], schema=SCHEMA)


def _halves(digests: pa.Array) -> NDArray[np.uint64]:
    """Views 128-bit hashes as pairs of numbers, (n, 2)."""
    halves: NDArray[np.uint64] = fixed_width(pa.chunked_array([digests]), np.dtype(np.uint64)).reshape(-1, 2)
    return halves
