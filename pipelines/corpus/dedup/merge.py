"""Merges the indexes of many parts into few, so that a task of the next phase opens few files.

A task that compares a range of keys needs that range of every part. Parts and ranges both grow with the corpus, so that
the opened files would grow with its square. A merged index has the files of a part's index, except for the ids.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from cluster.run.atomic import atomic_write
from pipelines.corpus.dedup.index import ABSENT, Index
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.tables import map_array
from pipelines.corpus.tasks import Phase, Report

# As many parts or fewer are not merged.
FEW_PARTS = 512
# Four million documents of 4 KB, whose merged index has 3 GB: as many as the keys of a task that looks for duplicates,
# which opens every merged index. With 512 to one, a quarter of its time would go into that at a billion documents.
PARTS_AT_ONCE = 2048
# A merge takes about 60 bytes a document, so 0.25 GB.
DOCUMENTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class MergePhase(Phase):
    """Writes one index in place of those of group `index`.

    Attributes:
        groups: folders of the indexes of each group, in the order of their documents.
        outputs: folder of each merged index.
    """

    groups: tuple[tuple[Path, ...], ...]
    outputs: tuple[Path, ...]

    def only(self, index: int) -> "MergePhase":
        return replace(self, groups=(self.groups[index],), outputs=(self.outputs[index],))

    def __call__(self, index: int) -> Report:
        parts = self.groups[index]
        documents = _starts(parts, "facts.npy")
        with atomic_write(self.outputs[index]) as side:
            shutil.rmtree(side, ignore_errors=True)
            side.mkdir()
            _write_facts(parts, side)
            _write_joined(parts, side, "signatures.npy", axis=0)
            for name in ("exact.npy", "bands.npy"):
                write_sorted(parts, side, name, documents)
            shutil.rmtree(self.outputs[index], ignore_errors=True)
        return {"documents": documents[-1]}


def groups(index: Index, parts: int = PARTS_AT_ONCE, documents: int = DOCUMENTS_AT_ONCE) -> list[list[int]]:
    """Groups the parts of an index in order, those of a group from one source and at most as many as can be merged."""
    found: list[list[int]] = []
    held = 0
    for part, (count, source) in enumerate(zip(index.counts, index.sources, strict=True)):
        new = not found or index.sources[found[-1][-1]] != source
        if new or len(found[-1]) == parts or held + count > documents:
            found.append([])
            held = 0
        found[-1].append(part)
        held += count
    return found


def merged_index(index: Index, grouped: Sequence[Sequence[int]], outputs: Sequence[Path]) -> Index:
    """Describes the same documents by the merged index of every group."""
    return Index(
        folders=tuple(outputs),
        counts=tuple(sum(index.counts[part] for part in group) for group in grouped),
        previous=sum(group[0] < index.previous for group in grouped),
        sources=tuple(index.sources[group[0]] for group in grouped),
    )


def _write_facts(parts: Sequence[Path], folder: Path) -> None:
    facts = _write_joined(parts, folder, "facts.npy", axis=0)
    starts, signed = _starts(parts, "facts.npy"), _starts(parts, "signatures.npy")
    for start, end, before in zip(starts[:-1], starts[1:], signed, strict=False):
        rows = facts["signature"][start:end]
        rows[rows != ABSENT] += before


def write_sorted(parts: Sequence[Path], folder: Path, name: str, documents: Sequence[int]) -> None:
    """Merges sorted keys with their rows, (…, 2, n); in equal keys the rows ascend."""
    joined = _write_joined(parts, folder, name, axis=-1)
    places = _starts(parts, name, axis=-1)
    for start, end, before in zip(places[:-1], places[1:], documents, strict=False):
        joined[..., 1, start:end] += np.uint64(before)
    if not places[-1]:
        return
    for keys, rows in joined.reshape(-1, 2, places[-1]):
        progress()
        order = np.argsort(keys, kind="stable")  # merges runs that are sorted
        keys[:], rows[:] = keys[order], rows[order]


def _write_joined(parts: Sequence[Path], folder: Path, name: str, axis: int) -> NDArray:
    """Writes the arrays of a file of all parts as one; returns it mapped for changes."""
    starts = _starts(parts, name, axis)
    first = map_array(parts[0] / name)
    shape = list(first.shape)
    shape[axis] = starts[-1]
    if not starts[-1]:  # nothing to map
        np.save(folder / name, np.empty(shape, first.dtype))
        return np.empty(shape, first.dtype)
    joined = open_memmap(folder / name, "w+", first.dtype, tuple(shape))
    for start, values in zip(starts, _arrays(parts, name), strict=False):
        np.moveaxis(joined, axis, 0)[start : start + values.shape[axis]] = np.moveaxis(values, axis, 0)
    return joined


def _starts(parts: Sequence[Path], name: str, axis: int = 0) -> list[int]:
    """Counts the entries of an array before each part, and in all of them."""
    counts = [values.shape[axis] for values in _arrays(parts, name)]
    return [0, *np.cumsum(counts, dtype=np.int64).tolist()]


def _arrays(parts: Sequence[Path], name: str) -> Iterator[NDArray]:
    for part in parts:
        progress()
        yield map_array(part / name)
