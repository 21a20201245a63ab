"""Writes and reads the index by which deduplication compares corpora: hashes, MinHash signatures, ids and sources, but
no text.

index/index.json           how the signatures were made
index/part-00000/          one folder per part; documents are numbered by their row
    facts.npy              of every document: bytes, quality, 128-bit hash, row of its signature or -1
    exact.npy              (2, n): sorted halves of the hashes, and the row of each
    bands.npy              (bands, 2, n): the same with the keys of the signatures' bands
    signatures.npy         (n, 112)
    documents.parquet      id, source

The index stays with the corpus, about 730 bytes per document, so that later corpora can leave out its documents.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.errors import UserError
from cluster.run.atomic import atomic_write, write_json
from pipelines.corpus.dedup.minhash import PERMUTATIONS, SIGNATURE_ALGORITHM, SIGNATURE_SEED, band_keys, signatures
from pipelines.corpus.tables import Part, fixed_width, map_array, selected_rows
from pipelines.corpus.tasks import Phase, Report

FACTS = np.dtype([("bytes", np.int64), ("quality", np.float32), ("digest", np.uint64, 2), ("signature", np.int32)])
ABSENT = -1


@dataclass(frozen=True)
class IndexPhase(Phase):
    """Signs and indexes the documents of part `index`.

    Attributes:
        left_out: files with the rows of each part that are not indexed, or None.
        folder: gets a folder per part.
        rows: the number of rows of a band.
    """

    parts: tuple[Part, ...]
    left_out: tuple[Path, ...] | None
    folder: Path
    rows: int

    def output(self, index: int) -> Path:
        return self.folder / self.parts[index].file.stem

    def only(self, index: int) -> "IndexPhase":
        return replace(self, parts=(self.parts[index],), left_out=self.left_out and (self.left_out[index],))

    def __call__(self, index: int) -> Report:
        part = self.parts[index]
        table = pq.read_table(part.file, columns=["id", "source", "bytes", "digest", "quality"])
        present = np.ones(table.num_rows, dtype=bool)
        if self.left_out:
            present[np.load(self.left_out[index])] = False
        compared = present if part.drop_near_duplicates else np.zeros(table.num_rows, dtype=bool)
        batches = (batch["text"].to_pylist() for batch in selected_rows(part.file, compared, ["text"]))
        signed = np.concatenate([np.empty((0, PERMUTATIONS), np.uint32), *map(signatures, batches)])
        write_part_index(self.output(index), table, present, np.flatnonzero(compared), signed, self.rows)
        return {"documents": table.num_rows}


def write_part_index(
    folder: Path,
    documents: pa.Table,
    present: NDArray[np.bool_],
    signed_rows: NDArray[np.int64],
    signed: NDArray[np.uint32],
    rows: int,
) -> None:
    """Writes the index of a part atomically.

    Args:
        documents: columns of `PREPARED`: id, source, bytes, digest, quality.
        present: whether each document is found by its hash, (documents,).
        signed_rows: rows of the documents that have a signature, ascending, (n,).
        signed: their signatures, (n, 112).
        rows: the number of rows of a band.
    """
    facts = np.zeros(documents.num_rows, dtype=FACTS)
    facts["bytes"] = documents["bytes"].to_numpy()
    facts["quality"] = documents["quality"].fill_null(0.0).to_numpy()
    facts["digest"] = fixed_width(documents["digest"], np.dtype(np.uint64)).reshape(-1, 2)
    facts["signature"] = ABSENT
    facts["signature"][signed_rows] = np.arange(len(signed_rows))
    present_rows = np.flatnonzero(present)
    bands = [sorted_keys(keys, signed_rows) for keys in band_keys(signed, rows)]
    with atomic_write(folder) as side:
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir()
        np.save(side / "facts.npy", facts)
        np.save(side / "exact.npy", sorted_keys(facts["digest"][present_rows, 0], present_rows))
        np.save(side / "bands.npy", np.stack(bands))
        np.save(side / "signatures.npy", signed)
        pq.write_table(documents.select(["id", "source"]), side / "documents.parquet", compression="zstd")
        shutil.rmtree(folder, ignore_errors=True)


def mark_complete(folder: Path, rows: int) -> None:
    """Marks an index whose parts are all written."""
    write_json(folder / "index.json", _made_by(rows))


def previous_indexes(corpora: Sequence[str], rows: int) -> list[Path]:
    """Lists the part indexes of previous corpora.

    Raises:
        UserError: a corpus has no index, or its signatures cannot be compared with this recipe's.
    """
    found: list[Path] = []
    for corpus in corpora:
        folder = Path(corpus).absolute() / "index"
        try:
            made_by = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"corpus.previous_corpora: {corpus} has no index/index.json; name the corpus folder of a finished run"
            ) from error
        if made_by != _made_by(rows):
            raise UserError(
                f"corpus.previous_corpora: {corpus} has signatures of another kind ({made_by}, here {_made_by(rows)}); "
                "set corpus.near_duplicate_similarity as it was there, or build that corpus again"
            )
        found += sorted(path for path in folder.iterdir() if path.is_dir())
    return found


def key_range(keys: NDArray[np.uint64], number: int, ranges: int) -> slice:
    """Finds the sorted keys in one of so many ranges of equal size."""
    edges = [-(-(edge << 64) // ranges) for edge in (number, number + 1)]
    first, last = (len(keys) if edge >> 64 else int(np.searchsorted(keys, np.uint64(edge))) for edge in edges)
    return slice(first, last)


@dataclass(frozen=True)
class Index:
    """All documents of several part indexes under one numbering: previous corpora first, then the new one.

    Attributes:
        folders: the folders of the part indexes.
        counts: documents per part.
        previous: number of parts that belong to previous corpora.
        sources: position of each part's source in the recipe, -1 for previous corpora.
    """

    folders: tuple[Path, ...]
    counts: tuple[int, ...]
    previous: int
    sources: tuple[int, ...]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first document of each part, and the number of all documents; (parts + 1,)."""
        return np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))

    @property
    def first_new(self) -> int:
        """Number of the first document that is not in a previous corpus."""
        return int(self.starts[self.previous])

    def source_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Looks up the position of each document's source."""
        return np.array(self.sources, dtype=np.int64)[self._part_of(documents)]

    def facts(self, documents: NDArray[np.int64]) -> NDArray:
        """Reads the `FACTS` of documents, in the given order."""
        found = np.empty(len(documents), dtype=FACTS)
        for part, here in self._by_part(documents):
            found[here] = map_array(self.folders[part] / "facts.npy")[documents[here] - self.starts[part]]
        return found

    def signatures(self, documents: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Reads signatures, (documents, 112); every document must have one."""
        signed = np.empty((len(documents), PERMUTATIONS), dtype=np.uint32)
        for part, here in self._by_part(documents):
            stored = map_array(self.folders[part] / "signatures.npy")
            rows = documents[here] - self.starts[part]
            if len(stored) < self.counts[part]:  # otherwise every document's signature is in its own row
                rows = map_array(self.folders[part] / "facts.npy")["signature"][rows]
            signed[here] = stored[rows]
        return signed

    def _part_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, documents, side="right") - 1

    def _by_part(self, documents: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
        parts = self._part_of(documents)
        order = np.argsort(parts, kind="stable")
        present, start = np.unique(parts[order], return_index=True)
        return zip(present.tolist(), np.split(order, start[1:]), strict=False)


def _made_by(rows: int) -> dict[str, Any]:
    return {
        "signatures": SIGNATURE_ALGORITHM,
        "seed": SIGNATURE_SEED,
        "permutations": PERMUTATIONS,
        "rows_in_a_band": rows,
    }


def sorted_keys(keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Sorts keys; returns them and the row of each, (2, n)."""
    order = np.argsort(keys, kind="stable")
    return np.stack([keys[order], rows[order].astype(np.uint64)])
