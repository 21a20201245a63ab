"""Says of every prepared document whether it is left out, trained on or held out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cluster.errors import UserError
from pipelines.corpus.dedup.cluster import EXACT, KEPT, KNOWN, NEAR
from pipelines.corpus.dedup.index import fixed, mapped
from pipelines.corpus.tasks import Report, written_to_the_side

DROPPED, TRAIN, HELD_OUT = 0, 1, 2
SPLITS = {"train": TRAIN, "held_out": HELD_OUT}
FATES = {KEPT: "kept", EXACT: "exact", NEAR: "near", KNOWN: "known"}

DUPLICATES = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("fate", pa.string()),  # kept, exact, near, or known from an earlier corpus
        ("stands", pa.int64()),  # number of the document that stands for it
        ("number", pa.int64()),  # its own
    ]
)


@dataclass(frozen=True)
class Selection:
    """What became of the documents.

    Attributes:
        exact: copies left out, by source.
        near: near-duplicates left out, by source.
        known: documents left out because an earlier corpus has them, by source.
        train_bytes: UTF-8 bytes of the documents to train on.
    """

    exact: dict[str, int]
    near: dict[str, int]
    known: dict[str, int]
    train_bytes: int


@dataclass(frozen=True)
class Choosing:
    """Writes what becomes of each row of part `index`, and which of them stand for others or are stood for.

    Attributes:
        prepared: what the first phase wrote, a file a part.
        starts: number of the first document of each part.
        fates: file of FATE, in the order of the documents.
        bounds: where in it each part's begin, and the last one's end.
        left_out: the rows of each part that were left out before, or None.
        choices: folder for DROPPED, TRAIN or HELD_OUT of each row.
        duplicates: folder for DUPLICATES.
        held_out_share: of the documents that are left.
        seed: of the choice.
    """

    prepared: tuple[Path, ...]
    starts: tuple[int, ...]
    fates: Path
    bounds: tuple[int, ...]
    left_out: tuple[Path, ...] | None
    choices: Path
    duplicates: Path
    held_out_share: float
    seed: int

    def choices_file(self, index: int) -> Path:
        return self.choices / f"{self.prepared[index].stem}.npy"

    def outputs(self, index: int) -> tuple[Path, ...]:
        return self.choices_file(index), self.duplicates / self.prepared[index].name

    def __call__(self, index: int) -> Report:
        table = pq.read_table(self.prepared[index], columns=["id", "source", "bytes", "digest"])
        fates = mapped(self.fates)[self.bounds[index] : self.bounds[index + 1]]
        rows = fates["document"] - self.starts[index]
        alive = np.ones(table.num_rows, dtype=bool)
        if self.left_out:
            alive[np.load(self.left_out[index])] = False
        alive[rows[fates["fate"] != KEPT]] = False
        digests = fixed(table["digest"], np.dtype("V16"))
        positions = np.array([document_position(digest.tobytes(), self.seed) for digest in digests])
        choices = np.where(positions < self.held_out_share, HELD_OUT, TRAIN).astype(np.uint8)
        choices[~alive] = DROPPED
        choices_file, duplicates_file = self.outputs(index)
        save_choices(choices_file, choices)
        with written_to_the_side(duplicates_file) as side:
            columns = [
                *table.select(["id", "source"]).take(pa.array(rows)).columns,
                pa.array([FATES[fate] for fate in fates["fate"].tolist()], pa.string()),
                pa.array(fates["stands"].copy()),
                pa.array(fates["document"].copy()),
            ]
            pq.write_table(pa.Table.from_arrays(columns, schema=DUPLICATES), side, compression="zstd")
        lengths = table["bytes"].to_numpy()
        left = np.flatnonzero(alive)
        ends = [left[positions[left].argmin()], left[positions[left].argmax()]] if len(left) else []
        return {
            "documents": table.num_rows,
            "left": len(left),
            "fates": dict(Counter(FATES[fate] for fate in fates["fate"].tolist())),
            "train_bytes": int(lengths[choices == TRAIN].sum()),
            # The first and the last position, each with its row and bytes.
            "ends": [[float(positions[row]), int(row), int(lengths[row])] for row in ends],
        }


def selection(choosing: Choosing, reports: Sequence[Report], sources: Sequence[str]) -> Selection:
    """Sums up, and sees to it that however small a corpus, there is something to train on and to measure with.

    Args:
        reports: what `choosing` returned, part by part.
        sources: of the parts.

    Raises:
        UserError: fewer than two documents are left.
    """
    left = sum(report["left"] for report in reports)
    if left < 2:
        every = sum(report["documents"] for report in reports)
        raise UserError(
            f"the corpus has {left} documents left of {every} after duplicates were dropped, and needs two "
            "at least: one to train on, one to hold out; add sources or lower corpus.min_words"
        )
    train_bytes = sum(report["train_bytes"] for report in reports)
    ends = [(*end, part) for part, report in enumerate(reports) for end in report["ends"]]
    for (position, row, size, part), choice in ((min(ends), HELD_OUT), (max(ends), TRAIN)):
        if (HELD_OUT if position < choosing.held_out_share else TRAIN) != choice:
            choices = np.load(choosing.choices_file(part))
            choices[row] = choice
            save_choices(choosing.choices_file(part), choices)
            train_bytes += size if choice == TRAIN else -size
    found: dict[str, Counter[str]] = {name: Counter() for name in FATES.values()}
    for report, source in zip(reports, sources, strict=True):
        for fate, count in report["fates"].items():
            found[fate][source] += count
    exact, near, known = (dict(found[name]) for name in ("exact", "near", "known"))
    return Selection(exact, near, known, train_bytes)


def save_choices(path: Path, choices: NDArray[np.uint8]) -> None:
    with written_to_the_side(path) as side, side.open("wb") as stream:
        np.save(stream, choices)


def document_position(digest: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on a text's hash and the seed alone, so that a text never changes sides."""
    return xxhash.xxh3_64_intdigest(digest, seed=seed) / 2**64
