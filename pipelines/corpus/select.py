"""Decides for every prepared document whether it is dropped as a duplicate, trained on or held out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cluster.failures import UserError
from pipelines.corpus.duplicates import PERMUTATIONS, exact_duplicates, near_duplicates

DROPPED, TRAIN, HELD_OUT = 0, 1, 2
SPLITS = {"train": TRAIN, "held_out": HELD_OUT}


@dataclass(frozen=True)
class Selection:
    """What becomes of every document.

    Attributes:
        choices: for every part, DROPPED, TRAIN or HELD_OUT of each row.
        exact: copies dropped, by source.
        near: near-duplicates dropped, by source.
        train_bytes: UTF-8 bytes of the documents to train on.
    """

    choices: list[NDArray[np.uint8]]
    exact: dict[str, int]
    near: dict[str, int]
    train_bytes: int


def select(paths: Sequence[Path], similarity: float, held_out_share: float, seed: int) -> Selection:
    """Reads the hashes, not the texts, of all prepared parts and chooses among their documents.

    Raises:
        UserError: fewer than two documents are left, so that there is nothing to train on or to measure with.
    """
    columns = ["source", "bytes", "digest", "signature"]
    tables = [pq.read_table(path, columns=columns) for path in paths]
    table = pa.concat_tables(tables)
    digests = _fixed(table, "digest", np.dtype(np.uint64)).reshape(-1, 2)
    lengths = table["bytes"].to_numpy()
    exact = exact_duplicates(digests)
    near = np.zeros(len(exact), dtype=bool)
    compared = np.flatnonzero(~exact & table["signature"].is_valid().to_numpy())
    signed = _fixed(table.take(compared), "signature", np.dtype(np.uint32)).reshape(-1, PERMUTATIONS)
    near[compared], _ = near_duplicates(signed, lengths[compared], similarity)
    alive = np.flatnonzero(~exact & ~near)
    if len(alive) < 2:
        raise UserError(
            f"the corpus has {len(alive)} documents left of {len(exact)} after duplicates were dropped, and needs two "
            "at least: one to train on, one to hold out; add sources or lower corpus.minimum_words"
        )
    choices = np.full(len(exact), DROPPED, dtype=np.uint8)
    choices[alive] = TRAIN
    choices[alive[_held_out(digests[alive], held_out_share, seed)]] = HELD_OUT
    sources = table["source"].to_numpy(zero_copy_only=False)
    return Selection(
        choices=np.split(choices, np.cumsum([part.num_rows for part in tables])[:-1]),
        exact=dict(Counter(sources[exact].tolist())),
        near=dict(Counter(sources[near].tolist())),
        train_bytes=int(lengths[choices == TRAIN].sum()),
    )


def document_position(digest: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on a text's hash and the seed alone, so that a text never changes sides."""
    return xxhash.xxh3_64_intdigest(digest, seed=seed) / 2**64


def _held_out(digests: NDArray[np.uint64], share: float, seed: int) -> NDArray[np.bool_]:
    positions = np.array([document_position(digest.tobytes(), seed) for digest in digests])
    held_out = positions < share
    # However small a corpus, there is something to measure with and something to train on.
    held_out[positions.argmin()] = True
    held_out[positions.argmax()] = False
    return held_out


def _fixed(table: pa.Table, column: str, dtype: np.dtype) -> NDArray:
    """The bytes of a fixed-size binary column as numbers."""
    values = table[column].combine_chunks()
    data = values.chunk(0) if isinstance(values, pa.ChunkedArray) and values.num_chunks else values
    if not len(data):
        return np.empty(0, dtype=dtype)
    width = data.type.byte_width
    return np.frombuffer(data.buffers()[1], dtype=np.uint8)[data.offset * width :][: len(data) * width].view(dtype)
