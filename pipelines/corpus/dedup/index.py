"""What deduplication keeps of a part's documents: hashes, signatures and where they come from, never their text.

index/index.json           how the signatures were made
index/part-00000/          numbers documents by their row in the part
    facts.npy              of every document: bytes, quality, 128-bit hash, place of its signature or -1
    exact.npy              (2, n): keys in their order, each half of a hash, and the row of each
    bands.npy              (bands, 2, n): the same with the keys of the signatures' bands
    signatures.npy         (n, 112)
    documents.parquet      id, source

It stays with the corpus, about 730 bytes a document, so that the next one can leave out what is in this one.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.errors import UserError
from cluster.recipe.corpus import FineWeb, Rules
from cluster.run.folder import write_json
from pipelines.corpus.dedup.minhash import PERMUTATIONS, SIGNATURE_ALGORITHM, SIGNATURE_SEED, band_keys
from pipelines.corpus.filter.cache import BATCH
from pipelines.corpus.filter.signals import measure
from pipelines.corpus.tasks import written_to_the_side

FACTS = np.dtype([("bytes", np.int64), ("quality", np.float32), ("digest", np.uint64, 2), ("signature", np.int32)])
ABSENT = -1


@dataclass(frozen=True)
class Indexing:
    """Writes the index of part `index`.

    Attributes:
        prepared: what the first phase wrote, a file a part.
        left_out: the rows of each part that are not to be found, or None.
        folder: a folder a part goes there.
        rows: of a band.
        quality: whether to measure the share of lines that end with punctuation, for which the text is read.
    """

    prepared: tuple[Path, ...]
    left_out: tuple[Path, ...] | None
    folder: Path
    rows: int
    quality: bool

    def output(self, index: int) -> Path:
        return self.folder / self.prepared[index].stem

    def __call__(self, index: int) -> dict[str, Any]:
        table = pq.read_table(self.prepared[index], columns=["id", "source", "bytes", "digest", "signature"])
        present = np.ones(table.num_rows, dtype=bool)
        if self.left_out:
            present[np.load(self.left_out[index])] = False
        signed_rows = np.flatnonzero(table["signature"].is_valid().to_numpy() & present)
        facts = np.zeros(table.num_rows, dtype=FACTS)
        facts["bytes"] = table["bytes"].to_numpy()
        facts["digest"] = fixed(table["digest"], np.dtype(np.uint64)).reshape(-1, 2)
        facts["signature"] = ABSENT
        facts["signature"][signed_rows] = np.arange(len(signed_rows))
        if self.quality:
            facts["quality"] = _qualities(self.prepared[index])
        signed = fixed(table["signature"].take(pa.array(signed_rows)), np.dtype(np.uint32)).reshape(-1, PERMUTATIONS)
        rows = np.flatnonzero(present)
        bands = [_sorted(keys, signed_rows) for keys in band_keys(signed, self.rows)]
        target = self.output(index)
        with written_to_the_side(target) as side:
            shutil.rmtree(side, ignore_errors=True)
            side.mkdir()
            np.save(side / "facts.npy", facts)
            np.save(side / "exact.npy", _sorted(facts["digest"][rows, 0], rows))
            np.save(side / "bands.npy", np.stack(bands))
            np.save(side / "signatures.npy", signed)
            pq.write_table(table.select(["id", "source"]), side / "documents.parquet", compression="zstd")
            shutil.rmtree(target, ignore_errors=True)
        return {"documents": len(facts)}


def write_index(folder: Path, rows: int) -> None:
    """Marks a folder of parts' indexes as whole."""
    write_json(folder / "index.json", _made_by(rows))


def known_indexes(corpora: Sequence[str], rows: int) -> list[Path]:
    """The parts' indexes of earlier corpora.

    Raises:
        UserError: there is no index, or its signatures cannot be compared with this recipe's.
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


def fixed(column: pa.ChunkedArray, dtype: np.dtype) -> NDArray:
    """The bytes of a fixed-size binary column without nulls, as numbers."""
    values = column.combine_chunks()
    data = values.chunk(0) if isinstance(values, pa.ChunkedArray) and values.num_chunks else values
    if not len(data):
        return np.empty(0, dtype=dtype)
    width = data.type.byte_width
    return np.frombuffer(data.buffers()[1], dtype=np.uint8)[data.offset * width :][: len(data) * width].view(dtype)


def mapped(file: Path) -> NDArray:
    """The array in a .npy file, read where it is looked at."""
    # What is empty cannot be mapped, and what is small need not be.
    array: NDArray = np.load(file, mmap_mode="r" if file.stat().st_size > 4096 else None)
    return array


def _made_by(rows: int) -> dict[str, Any]:
    return {
        "signatures": SIGNATURE_ALGORITHM,
        "seed": SIGNATURE_SEED,
        "permutations": PERMUTATIONS,
        "rows_in_a_band": rows,
    }


def _sorted(keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    order = np.argsort(keys, kind="stable")
    return np.stack([keys[order], rows[order].astype(np.uint64)])


def _qualities(prepared: Path) -> NDArray[np.float64]:
    rules = Rules(fineweb=FineWeb())
    with pq.ParquetFile(prepared) as file:
        texts = (batch["text"].to_pylist() for batch in file.iter_batches(BATCH, columns=["text"]))
        return np.concatenate([np.empty(0), *(measure(some, rules)[1]["punctuated_lines"] for some in texts)])
