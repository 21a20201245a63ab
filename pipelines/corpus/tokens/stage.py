"""Encodes the documents of the training and held-out splits and packs them into rows, in their order."""

from collections.abc import Iterable, Iterator
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
from pipelines.corpus.dedup.split import SPLITS
from pipelines.corpus.tables import BATCH, selected_rows
from pipelines.corpus.tasks import Phase, Report, Task, run_tasks
from pipelines.corpus.tokens.cache import CachedTokens, TokenCache
from pipelines.corpus.tokens.mix import Mixture
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID, pack
from pipelines.corpus.tokens.train import document_frame

# Documents packed together: 1.4 % of padding on the demo corpus, in bounded memory.
WINDOW_DOCUMENTS = 4096
WINDOW_BYTES = 16 << 20

DOCUMENTS = pa.schema([("id", pa.string()), ("source", pa.string()), ("split", pa.string()), ("text", pa.string())])


def tokenize(
    recipe: Recipe, mixture: Mixture, tokens: TokenCache, out: Path, progress: Progress
) -> tuple["TokenizePhase", list[Report]]:
    """Runs the phase over all parts; returns the phase, which has the paths of the rows, and the reports.

    Raises:
        DeadlineError: no part finished within the recipe's deadline.
    """
    begin, end = document_frame(out / "tokenizer")
    phase = TokenizePhase(
        parts=tuple(part.file for part in mixture.parts),
        assignments=mixture.assignments,
        tokens=tokens,
        rows=out / "work" / "rows",
        documents=out / "documents",
        context=recipe.model.context,
        begin=tuple(begin),
        end=end,
    )
    tasks = [
        Task(
            part.file.stem,
            fingerprint([part.fingerprint, file_fingerprint(assignments), tokens.fingerprint, phase.context]),
            (tokens.file(part.file), phase.documents_file(index), *(phase.rows_file(index, name) for name in SPLITS)),
        )
        for index, (part, assignments) in enumerate(zip(mixture.parts, mixture.assignments, strict=True))
    ]
    done, deadline = out / "work" / "done" / "tokenize", recipe.cluster.deadline_seconds
    return phase, run_tasks("tokenize and pack", done, tasks, phase, progress, deadline)


@dataclass(frozen=True)
class TokenizePhase(Phase):
    """Writes the documents of part `index` that are not dropped, and their packed rows.

    Attributes:
        parts: part files.
        assignments: a file per part, with DROPPED, TRAIN or HELD_OUT of each row.
        tokens: encodes the documents.
        rows: folder for the packed rows.
        documents: folder for the documents' text.
        context: tokens of a row.
        begin: tokens before every document, of models that have one.
        end: token after every document.
    """

    parts: tuple[Path, ...]
    assignments: tuple[Path, ...]
    tokens: TokenCache
    rows: Path
    documents: Path
    context: int
    begin: tuple[int, ...]
    end: int

    def only(self, index: int) -> "TokenizePhase":
        return replace(self, parts=(self.parts[index],), assignments=(self.assignments[index],))

    def __call__(self, index: int) -> Report:
        part, assignments = self.parts[index], self.assignments[index]
        report: Report = {"encoded": self.tokens.encode(part, assignments)}
        stored, assigned = self.tokens.of(part), np.load(assignments)
        columns = ["id", "source", "text", "bytes", "digest"]
        with (
            atomic_write(self.documents_file(index)) as side,
            pq.ParquetWriter(side, DOCUMENTS, compression="zstd") as writer,
        ):
            for split, assignment in SPLITS.items():
                batches = selected_rows(part, assigned == assignment, columns)
                report[split] = self._write_split(split, batches, stored, self.rows_file(index, split), writer)
        files = {split: file_fingerprint(self.rows_file(index, split)) for split in SPLITS}
        return {**report, "fingerprints": files}

    def documents_file(self, index: int) -> Path:
        return self.documents / self.parts[index].name

    def rows_file(self, index: int, split: str) -> Path:
        return self.rows / f"{self.parts[index].stem}.{split}.rows"

    def _write_split(
        self, split: str, batches: Iterable[pa.RecordBatch], stored: CachedTokens, path: Path, writer: pq.ParquetWriter
    ) -> dict[str, int]:
        count = dict.fromkeys(("documents", "bytes", "tokens", "rows", "padding", "cut"), 0)
        with atomic_write(path) as side, side.open("wb") as file:
            for window in _windows(batches):
                ids = stored.ids(window["digest"].combine_chunks())
                begin, end = np.array(self.begin, np.int32), np.array([self.end], np.int32)
                packed = pack([np.concatenate([begin, document, end]) for document in ids], self.context)
                np.stack([packed.input_ids, packed.document_ids], axis=1).tofile(file)
                columns = [window["id"], window["source"], pa.array([split] * len(ids)), window["text"]]
                writer.write_table(pa.Table.from_arrays(columns, schema=DOCUMENTS), row_group_size=BATCH)
                count["documents"] += len(ids)
                count["bytes"] += sum(window["bytes"].to_pylist())
                count["tokens"] += sum(map(len, ids))
                count["rows"] += len(packed.input_ids)
                count["padding"] += int((packed.document_ids == PAD_DOCUMENT_ID).sum())
                count["cut"] += sum(len(begin) + len(document) + 1 > self.context for document in ids)
        return count


def map_rows(path: Path, context: int) -> NDArray[np.int32]:
    """Maps the packed rows of a `TokenizePhase` into memory: (rows, 2, context), token ids and document ids."""
    if path.stat().st_size == 0:
        return np.empty((0, 2, context), dtype=np.int32)
    return np.memmap(path, dtype=np.int32, mode="r").reshape(-1, 2, context)


def _windows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Joins batches to windows of at least `WINDOW_DOCUMENTS` documents or `WINDOW_BYTES` of text."""
    held: list[pa.RecordBatch] = []
    documents = size = 0
    for batch in batches:
        held.append(batch)
        documents += batch.num_rows
        size += sum(batch["bytes"].to_pylist())
        if documents >= WINDOW_DOCUMENTS or size >= WINDOW_BYTES:
            yield pa.Table.from_batches(held)
            held, documents, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)
