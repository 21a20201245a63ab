"""Assigns every prepared document to the training split, to the held-out split, or to none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cluster.run.atomic import atomic_write
from pipelines.corpus.dedup.cluster import EXACT, KEPT, NEAR, PREVIOUS
from pipelines.corpus.tables import Part, fixed_width, map_array, save_array
from pipelines.corpus.tasks import Phase, Report

# Assignments of a document.
DROPPED, TRAIN, HELD_OUT = 0, 1, 2
SPLITS = {"train": TRAIN, "held_out": HELD_OUT}
STATUSES = {KEPT: "kept", EXACT: "exact", NEAR: "near", PREVIOUS: "previous"}

DUPLICATES = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),  # kept, exact, near, or previous: in a previous corpus
        ("representative", pa.int64()),  # number of the document that stays in its place
        ("number", pa.int64()),  # its own
    ]
)


@dataclass(frozen=True)
class Dropped:
    """Numbers of documents dropped, and of those that are left.

    Attributes:
        exact: exact copies, by source.
        near: near-duplicates, by source.
        previous: documents that a previous corpus has, by source.
        contaminated: documents that contain evaluation items, of all sources.
        left: documents that are left.
        train_bytes: UTF-8 bytes of the training split.
    """

    exact: dict[str, int]
    near: dict[str, int]
    previous: dict[str, int]
    contaminated: int
    left: int
    train_bytes: int


@dataclass(frozen=True)
class SplitPhase(Phase):
    """Writes the assignment of each row of part `index`, and the list of its documents in clusters.

    Attributes:
        starts: number of the first document of each part.
        decisions: file of `DECISION`, by document.
        bounds: positions in it where the documents of each part begin, and of its end.
        left_out: files with the rows of each part that are dropped already, or None.
        assignments: folder for DROPPED, TRAIN or HELD_OUT of each row, uint8.
        duplicates: folder for `DUPLICATES`.
        held_out_share: the share of the remaining documents to hold out.
        seed: the seed of the held-out split.
    """

    parts: tuple[Part, ...]
    starts: tuple[int, ...]
    decisions: Path
    bounds: tuple[int, ...]
    left_out: tuple[Path, ...] | None
    assignments: Path
    duplicates: Path
    held_out_share: float
    seed: int

    def assignments_file(self, index: int) -> Path:
        return self.assignments / f"{self.parts[index].file.stem}.npy"

    def outputs(self, index: int) -> tuple[Path, ...]:
        """Lists the files that a task writes."""
        return self.assignments_file(index), self.duplicates / self.parts[index].file.name

    def only(self, index: int) -> "SplitPhase":
        return replace(
            self,
            parts=(self.parts[index],),
            starts=(self.starts[index],),
            bounds=(self.bounds[index], self.bounds[index + 1]),
            left_out=self.left_out and (self.left_out[index],),
        )

    def __call__(self, index: int) -> Report:
        table = pq.read_table(self.parts[index].file, columns=["id", "source", "bytes", "digest"])
        decisions = map_array(self.decisions)[self.bounds[index] : self.bounds[index + 1]]
        rows = decisions["document"] - self.starts[index]
        statuses = [STATUSES[status] for status in decisions["status"].tolist()]
        left = np.ones(table.num_rows, dtype=bool)
        if self.left_out:
            left[np.load(self.left_out[index])] = False
        left[rows[decisions["status"] != KEPT]] = False
        digests = fixed_width(table["digest"], np.dtype("V16"))
        positions = np.array([document_position(digest.tobytes(), self.seed) for digest in digests])
        assignments = np.where(positions < self.held_out_share, HELD_OUT, TRAIN).astype(np.uint8)
        assignments[~left] = DROPPED
        assignments_file, duplicates_file = self.outputs(index)
        save_array(assignments_file, assignments)
        with atomic_write(duplicates_file) as side:
            columns = [
                *table.select(["id", "source"]).take(pa.array(rows)).columns,
                pa.array(statuses, pa.string()),
                pa.array(decisions["representative"].copy()),
                pa.array(decisions["document"].copy()),
            ]
            pq.write_table(pa.Table.from_arrays(columns, schema=DUPLICATES), side, compression="zstd")
        sizes = table["bytes"].to_numpy()
        left_rows = np.flatnonzero(left)
        ends = (
            [left_rows[positions[left_rows].argmin()], left_rows[positions[left_rows].argmax()]]
            if len(left_rows)
            else []
        )
        return {
            "documents": table.num_rows,
            "left": len(left_rows),
            "statuses": dict(Counter(statuses)),
            "train_bytes": int(sizes[assignments == TRAIN].sum()),
            # The documents at the first and the last position, each with its row and bytes.
            "ends": [[float(positions[row]), int(row), int(sizes[row])] for row in ends],
        }


def finish_split(phase: SplitPhase, reports: Sequence[Report]) -> Dropped:
    """Adds up the reports, and moves a document to a split that would be empty, as in a very small corpus.

    Of fewer than two documents, a split stays empty.

    Args:
        reports: the reports of the phase's tasks, in order.
    """
    left = sum(report["left"] for report in reports)
    train_bytes = sum(report["train_bytes"] for report in reports)
    ends = [(*end, part) for part, report in enumerate(reports) for end in report["ends"]]
    for (position, row, size, part), needed in ((min(ends), HELD_OUT), (max(ends), TRAIN)) if left > 1 else ():
        if (HELD_OUT if position < phase.held_out_share else TRAIN) != needed:
            assignments = np.load(phase.assignments_file(part))
            assignments[row] = needed
            save_array(phase.assignments_file(part), assignments)
            train_bytes += size if needed == TRAIN else -size
    found: dict[str, Counter[str]] = {name: Counter() for name in STATUSES.values()}
    for part, report in zip(phase.parts, reports, strict=True):
        for status, count in report["statuses"].items():
            found[status][part.source] += count
    exact, near, previous = (dict(found[name]) for name in ("exact", "near", "previous"))
    duplicates = sum(sum(counts.values()) for counts in (exact, near, previous))
    contaminated = sum(report["documents"] for report in reports) - left - duplicates
    return Dropped(exact, near, previous, contaminated, left, train_bytes)


def document_position(digest: bytes, seed: int) -> float:
    """Hashes a document to a number in [0, 1), so that its split depends on its text and the seed alone."""
    return xxhash.xxh3_64_intdigest(digest, seed=seed) / 2**64
