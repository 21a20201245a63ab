"""Draws the texts that the tokenizer is trained on, by hash, so that they depend on the texts and the seed alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.progress import Progress

from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.dedup.split import TRAIN, document_position
from pipelines.corpus.tables import Part, selected_rows
from pipelines.corpus.tasks import Phase, Report, Task, run_tasks

# Training keeps every distinct word of the sample in memory.
SAMPLE_BYTES = 64 << 20
_SCHEMA = pa.schema([("text", pa.string())])


def sample(
    recipe: Recipe, parts: Sequence[Part], assignments: Sequence[Path], train_bytes: int, work: Path, progress: Progress
) -> Iterator[str]:
    """Yields the training texts if they are no more than `SAMPLE_BYTES`, else a share of them of about that size.

    Tasks draw the share, so that no process decodes the whole corpus.

    Args:
        assignments: a file per part, with DROPPED, TRAIN or HELD_OUT of each row.
        train_bytes: the bytes of the training split.
        work: folder for the texts drawn, and for markers.

    Raises:
        DeadlineError: no part was read within the recipe's deadline.
    """
    share = min(1.0, SAMPLE_BYTES / train_bytes)
    if share == 1.0:
        for part, file in zip(parts, assignments, strict=True):
            for batch in selected_rows(part.file, np.load(file) == TRAIN, ["text"]):
                yield from batch["text"].to_pylist()
        return
    phase = SamplePhase(tuple(part.file for part in parts), tuple(assignments), share, recipe.seed, work / "sample")
    tasks = [
        Task(
            part.file.stem,
            fingerprint([part.fingerprint, file_fingerprint(file), share, recipe.seed]),
            (phase.output(index),),
        )
        for index, (part, file) in enumerate(zip(parts, assignments, strict=True))
    ]
    run_tasks("sample", work / "done" / "sample", tasks, phase, progress, recipe.cluster.deadline_seconds)
    for index in range(len(tasks)):
        yield from pq.read_table(phase.output(index))["text"].to_pylist()


@dataclass(frozen=True)
class SamplePhase(Phase):
    """Writes the texts of part `index` that the tokenizer is trained on.

    Attributes:
        parts: part files.
        assignments: a file per part, with DROPPED, TRAIN or HELD_OUT of each row.
        share: the share of the training documents to take.
        seed: the seed of the sample.
        folder: the folder for the texts.
    """

    parts: tuple[Path, ...]
    assignments: tuple[Path, ...]
    share: float
    seed: int
    folder: Path

    def output(self, index: int) -> Path:
        return self.folder / self.parts[index].name

    def only(self, index: int) -> "SamplePhase":
        return replace(self, parts=(self.parts[index],), assignments=(self.assignments[index],))

    def __call__(self, index: int) -> Report:
        part = self.parts[index]
        drawn = self._drawn(part, np.load(self.assignments[index]) == TRAIN)
        with atomic_write(self.output(index)) as side, pq.ParquetWriter(side, _SCHEMA, compression="zstd") as writer:
            for batch in selected_rows(part, drawn, ["text"]):
                writer.write_batch(batch)
        return {"documents": int(drawn.sum())}

    def _drawn(self, part: Path, training: NDArray[np.bool_]) -> NDArray[np.bool_]:
        digests = [
            digest for batch in selected_rows(part, training, ["digest"]) for digest in batch["digest"].to_pylist()
        ]
        # With the seed of the held-out split, documents at the lowest positions could not be here.
        drawn = training.copy()
        drawn[training] = [document_position(digest, self.seed + 1) < self.share for digest in digests]
        return drawn
