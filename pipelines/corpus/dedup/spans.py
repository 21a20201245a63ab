"""Leaves only the first of spans of three sentences in a row that several documents, or one of them, repeat.

That is the deduplication of C4 (Raffel et al. 2020, section 2.2). A span is found by the hash of its sentences, without
case and repeated spaces; of 20 billion spans some ten hashes are equal by chance. Every part writes the sorted hashes
of its spans; tasks compare a range of hashes of all parts; then every part is written again without the sentences of
repeated spans. A sentence that is also in a span that stays is kept: each removed span is whole in one place.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint
from pipelines.corpus.clean.sentences import SENTENCE_END, sentences
from pipelines.corpus.clean.words import ends_no_sentences
from pipelines.corpus.dedup.index import key_range, sorted_keys
from pipelines.corpus.dedup.merge import write_sorted
from pipelines.corpus.filter.signals import punctuated_lines
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.tables import EXCLUDED, PREPARED, Part, map_array, rows_at_once, save_array, selected_rows
from pipelines.corpus.tasks import Phase, Report

SENTENCES_IN_A_SPAN = 3
REASON = "c4: repeated sentences"
# A task takes about 60 bytes a span, so 0.5 GB.
SPANS_AT_ONCE = 8_000_000
# The place of a span: number of its document, then of its first sentence. A record of 64 MB has fewer sentences.
_SENTENCE_BITS = 23
# A mark is a place and, in its last bit, whether the span there is removed.
MARK_BITS = _SENTENCE_BITS + 1
_SPANS = "spans.npy"
_EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class SpanPhase(Phase):
    """Writes the hashes of the spans of part `index`, sorted, and the place of each within the part, (2, n)."""

    parts: tuple[Part, ...]
    folder: Path

    def output(self, index: int) -> Path:
        return self.folder / self.parts[index].file.stem

    def only(self, index: int) -> "SpanPhase":
        return replace(self, parts=(self.parts[index],))

    def __call__(self, index: int) -> Report:
        part = self.parts[index]
        keys, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        row = 0
        every = np.full(pq.read_metadata(part.file).num_rows, part.drop_near_duplicates)
        for batch in selected_rows(part.file, every, ["text"]):
            for text in batch["text"].to_pylist():
                keys.append(span_keys(sentences(text)))
                places.append((row << _SENTENCE_BITS) + np.arange(len(keys[-1])))
                row += 1
        found = sorted_keys(np.concatenate(keys), np.concatenate(places))
        save_array(self.output(index) / _SPANS, found)
        return {"spans": found.shape[1]}


@dataclass(frozen=True)
class MergeSpansPhase(Phase):
    """Writes one file of sorted spans in place of those of group `index`.

    Attributes:
        groups: folders of the parts of each group.
        starts: number of the first document of each part of a group, within the group.
        outputs: folder of each group.
    """

    groups: tuple[tuple[Path, ...], ...]
    starts: tuple[tuple[int, ...], ...]
    outputs: tuple[Path, ...]

    def only(self, index: int) -> "MergeSpansPhase":
        return replace(self, groups=(self.groups[index],), starts=(self.starts[index],), outputs=(self.outputs[index],))

    def __call__(self, index: int) -> Report:
        with atomic_write(self.outputs[index]) as side:
            shutil.rmtree(side, ignore_errors=True)
            side.mkdir()
            write_sorted(self.groups[index], side, _SPANS, [start << _SENTENCE_BITS for start in self.starts[index]])
            shutil.rmtree(self.outputs[index], ignore_errors=True)
        return {}


@dataclass(frozen=True)
class RepeatedSpansPhase:
    """Writes the marks of the spans that occur more than once, of range `index` of the hashes, in order.

    Attributes:
        folders: folders of sorted spans.
        starts: number of the first document of each.
        ranges: the number of ranges of equal size into which the hashes are divided.
        folder: the folder for the files.
    """

    folders: tuple[Path, ...]
    starts: tuple[int, ...]
    ranges: int
    folder: Path

    def output(self, index: int) -> Path:
        return self.folder / f"range-{index:05d}.npy"

    def __call__(self, index: int) -> Report:
        keys, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for folder, start in zip(self.folders, self.starts, strict=True):
            progress()
            stored, within = map_array(folder / _SPANS)
            here = key_range(stored, index, self.ranges)
            keys.append(np.array(stored[here]))
            places.append(within[here] + np.uint64(start << _SENTENCE_BITS))
        marks = repeated(np.concatenate(keys), np.concatenate(places))
        save_array(self.output(index), marks)
        return {"marks": len(marks)}


@dataclass(frozen=True)
class RemoveSpansPhase(Phase):
    """Writes part `index` again without the sentences of spans that are marked as removed.

    A document that has fewer sentences left than `least` is dropped.

    Attributes:
        starts: number of the first document of each part.
        marks: file of all marks, in order.
        bounds: positions in it where the marks of each part begin, and of its end.
        folder: gets the parts, `PREPARED`.
        excluded: folder for the documents that are dropped; None to discard them.
    """

    parts: tuple[Part, ...]
    starts: tuple[int, ...]
    marks: Path
    bounds: tuple[int, ...]
    least: int
    folder: Path
    excluded: Path | None

    def output(self, index: int) -> Path:
        return self.folder / self.parts[index].file.name

    def excluded_file(self, index: int) -> Path | None:
        return self.excluded / f"{self.parts[index].file.stem}-repeated.parquet" if self.excluded else None

    def outputs(self, index: int) -> tuple[Path, ...]:
        """Lists the files that a task writes."""
        excluded = self.excluded_file(index)
        return (self.output(index), *([excluded] if excluded else []))

    def only(self, index: int) -> "RemoveSpansPhase":
        return replace(
            self,
            parts=(self.parts[index],),
            starts=(self.starts[index],),
            bounds=(self.bounds[index], self.bounds[index + 1]),
        )

    def __call__(self, index: int) -> Report:
        marks = map_array(self.marks)[self.bounds[index] : self.bounds[index + 1]]
        marks = marks - np.uint64(self.starts[index] << MARK_BITS)
        count = _Count()
        gone: list[pa.Table] = []
        row = 0
        with (
            atomic_write(self.output(index)) as side,
            pq.ParquetFile(self.parts[index].file) as part,
            pq.ParquetWriter(side, PREPARED, compression="zstd") as writer,
        ):
            for batch in part.iter_batches(rows_at_once(part)):
                progress()
                ends = np.array([row, row + batch.num_rows], dtype=np.uint64) << np.uint64(MARK_BITS)
                first, last = np.searchsorted(marks, ends)
                table = pa.Table.from_batches([batch], schema=PREPARED)
                if last > first:
                    table, dropped = self._without(table, marks[first:last] - ends[0], count)
                    gone.append(dropped)
                writer.write_table(table)
                count.documents += table.num_rows
                count.bytes += sum(table["bytes"].to_pylist())
                row += batch.num_rows
        if excluded := self.excluded_file(index):
            with atomic_write(excluded) as side:
                pq.write_table(pa.concat_tables([EXCLUDED.empty_table(), *gone]), side, compression="zstd")
        return {"fingerprint": file_fingerprint(self.output(index)), **vars(count)}

    def _without(self, table: pa.Table, marks: NDArray[np.uint64], count: "_Count") -> tuple[pa.Table, pa.Table]:
        """Removes the marked sentences of a batch; returns the documents left, and those dropped."""
        rows = table.to_pylist()
        documents = (marks >> np.uint64(MARK_BITS)).astype(np.int64)
        numbers, firsts = np.unique(documents, return_index=True)
        gone: list[dict[str, str]] = []
        for number, own in zip(numbers.tolist(), np.split(marks, firsts[1:]), strict=True):
            row = rows[number]
            text, removed = without_spans(row["text"], own)
            if not removed:
                continue
            count.changed += 1
            count.sentences += removed
            if not _is_enough(text, self.least):
                count.dropped += 1
                count.dropped_bytes += row["bytes"]
                count.example = count.example or {"id": row["id"], "text": row["text"][:_EXAMPLE_CHARACTERS]}
                gone.append({name: row[name] for name in ("id", "source", "text")} | {"reason": REASON})
                rows[number] = None
                continue
            data = text.encode()
            row |= {"text": text, "bytes": len(data), "digest": xxhash.xxh3_128_digest(data)}
            if row["quality"] is not None:
                row["quality"] = float(punctuated_lines([text])[0])
        left = pa.Table.from_pylist([row for row in rows if row], schema=PREPARED)
        return left, pa.Table.from_pylist(gone, schema=EXCLUDED)


@dataclass
class _Count:
    """Documents and bytes left and dropped, documents changed or dropped, sentences removed, and a dropped one."""

    documents: int = 0
    bytes: int = 0
    changed: int = 0
    sentences: int = 0
    dropped: int = 0
    dropped_bytes: int = 0
    example: dict[str, str] | None = None


def span_keys(pieces: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes each span of three sentences in a row, (sentences - 2,)."""
    hashes = [xxhash.xxh3_64_digest(" ".join(piece.casefold().split()).encode()) for piece in pieces]
    spans = range(len(pieces) - SENTENCES_IN_A_SPAN + 1)
    found = [xxhash.xxh3_64_intdigest(b"".join(hashes[at : at + SENTENCES_IN_A_SPAN])) for at in spans]
    return np.array(found, dtype=np.uint64)


def repeated(keys: NDArray[np.uint64], places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Marks the places of spans whose hash occurs more than once: the first as staying, the others as removed.

    Args:
        keys: the hash of each span, (n,).
        places: (n,).

    Returns:
        marks, ascending.
    """
    order = np.lexsort((places, keys))
    same = keys[order][1:] == keys[order][:-1]
    later, earlier = np.append(False, same), np.append(same, False)
    chosen = later | earlier if len(order) else np.empty(0, dtype=bool)
    marks = (places[order][chosen] << np.uint64(1)) | later[: len(order)][chosen].astype(np.uint64)
    return np.sort(marks)


def without_spans(text: str, marks: NDArray[np.uint64]) -> tuple[str, int]:
    """Removes the sentences of spans marked as removed that are in no span marked as staying.

    Returns:
        (text, removed): the text without them and without empty lines, and the number of sentences removed.
    """
    pieces = sentences(text)
    first = ((marks >> np.uint64(1)) & np.uint64((1 << _SENTENCE_BITS) - 1)).astype(np.int64)
    removed = np.zeros(len(pieces), dtype=bool)
    for value, places in ((True, first[marks & np.uint64(1) == 1]), (False, first[marks & np.uint64(1) == 0])):
        for offset in range(SENTENCES_IN_A_SPAN):
            removed[places + offset] = value
    kept = "".join(piece for piece, gone in zip(pieces, removed, strict=True) if not gone)
    return "\n".join(line.strip() for line in kept.splitlines() if line.strip()), int(removed.sum())


def _is_enough(text: str, least: int) -> bool:
    if not text:
        return False
    return ends_no_sentences(text) or len(SENTENCE_END.findall(text)) >= least
