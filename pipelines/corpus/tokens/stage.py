"""The second phase, part by part: encode the chosen documents and pack them into rows, not shuffled yet."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.run.folder import file_fingerprint
from pipelines.corpus.dedup.split import SPLITS
from pipelines.corpus.filter.cache import BATCH
from pipelines.corpus.tasks import written_to_the_side
from pipelines.corpus.tokens.cache import CachedTokens, Tokens
from pipelines.corpus.tokens.pack import NO_DOCUMENT, pack

# Documents are packed among so many neighbors: 1.4 % of padding on the demo corpus, and memory stays bounded.
WINDOW_DOCUMENTS = 4096
WINDOW_BYTES = 16 << 20

DOCUMENTS = pa.schema([("id", pa.string()), ("source", pa.string()), ("split", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class Tokenization:
    """Writes, of part `index`, the chosen documents and their packed rows.

    Attributes:
        prepared: what the first phase wrote, a file a part.
        choices: what was decided on each row, a file a part.
        tokens: encodes them.
        rows: folder for the packed rows.
        documents: folder for the chosen documents' text.
        context: tokens a row.
        end: the token after every document.
    """

    prepared: tuple[Path, ...]
    choices: tuple[Path, ...]
    tokens: Tokens
    rows: Path
    documents: Path
    context: int
    end: int

    def __call__(self, index: int) -> dict[str, Any]:
        prepared, choices = self.prepared[index], self.choices[index]
        report: dict[str, Any] = {"encoded": self.tokens.encode(prepared, choices)}
        stored = self.tokens.of(prepared)
        with (
            written_to_the_side(self.documents_file(index)) as side,
            pq.ParquetWriter(side, DOCUMENTS, compression="zstd") as writer,
        ):
            for split, choice in SPLITS.items():
                chosen = chosen_documents(prepared, choices, choice)
                report[split] = self._write_split(split, chosen, stored, self.rows_file(index, split), writer)
        files = {split: file_fingerprint(self.rows_file(index, split)) for split in SPLITS}
        return {**report, "fingerprints": files}

    def documents_file(self, index: int) -> Path:
        return self.documents / self.prepared[index].name

    def rows_file(self, index: int, split: str) -> Path:
        return self.rows / f"{self.prepared[index].stem}.{split}.rows"

    def _write_split(
        self, split: str, batches: Iterable[pa.RecordBatch], stored: CachedTokens, path: Path, writer: pq.ParquetWriter
    ) -> dict[str, int]:
        count = dict.fromkeys(("documents", "bytes", "tokens", "rows", "padding", "cut"), 0)
        with written_to_the_side(path) as side, side.open("wb") as file:
            for window in _windows(batches):
                ids = stored.ids(window["digest"].combine_chunks())
                packed = pack([np.append(document, np.int32(self.end)) for document in ids], self.context)
                np.stack([packed.input_ids, packed.document_ids], axis=1).tofile(file)
                columns = [window["id"], window["source"], pa.array([split] * len(ids)), window["text"]]
                writer.write_table(pa.Table.from_arrays(columns, schema=DOCUMENTS), row_group_size=BATCH)
                count["documents"] += len(ids)
                count["bytes"] += sum(window["bytes"].to_pylist())
                count["tokens"] += sum(map(len, ids))
                count["rows"] += len(packed.input_ids)
                count["padding"] += int((packed.document_ids == NO_DOCUMENT).sum())
                count["cut"] += sum(len(document) + 1 > self.context for document in ids)
        return count


def chosen_documents(prepared: Path, choices: Path, choice: int) -> Iterator[pa.RecordBatch]:
    """The rows of a prepared part with that choice, in order, a batch at a time: id, source, text, bytes, digest."""
    wanted: NDArray[np.uint8] = np.load(choices)
    start = 0
    with pq.ParquetFile(prepared) as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=["id", "source", "text", "bytes", "digest"]):
            yield batch.filter(pa.array(wanted[start : start + batch.num_rows] == choice))
            start += batch.num_rows


def open_rows(path: Path, context: int) -> NDArray[np.int32]:
    """Packed rows as `Tokenization` wrote them, mapped into memory: (rows, 2, context), ids and document ids."""
    if path.stat().st_size == 0:
        return np.empty((0, 2, context), dtype=np.int32)
    return np.memmap(path, dtype=np.int32, mode="r").reshape(-1, 2, context)


def _windows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    documents = size = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        held.append(batch)
        documents += batch.num_rows
        size += sum(batch["bytes"].to_pylist())
        if documents >= WINDOW_DOCUMENTS or size >= WINDOW_BYTES:
            yield pa.Table.from_batches(held)
            held, documents, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)
