"""Finds the documents that belong together, a range of one band's keys a task, and decides which of each group stays.

What leaves a part are pairs of a key and a document's number. A task holds those of its range, and reads the signatures
of the candidates from the parts' indexes, some thousands at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.recipe.corpus import KeepPolicy
from pipelines.corpus.dedup.index import FACTS, mapped
from pipelines.corpus.dedup.minhash import bucket_pairs, stars
from pipelines.corpus.tasks import written_to_the_side

# A task takes about 100 bytes a key, so 0.4 GB.
KEYS_AT_ONCE = 4_000_000
_PAIRS_AT_ONCE = 50_000

KEPT, EXACT, NEAR, KNOWN = 0, 1, 2, 3
FATE = np.dtype([("document", np.int64), ("stands", np.int64), ("fate", np.uint8)])


@dataclass(frozen=True)
class Documents:
    """All documents of some parts' indexes, numbered on from part to part: earlier corpora first, then the own.

    Attributes:
        indexes: a folder a part.
        counts: documents a part.
        known: how many of the parts are those of earlier corpora.
        sources: the place of each part's source in the recipe, -1 for earlier corpora.
    """

    indexes: tuple[Path, ...]
    counts: tuple[int, ...]
    known: int
    sources: tuple[int, ...]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(parts + 1,): number of the first document of each part, then of all documents."""
        return np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))

    @property
    def first_own(self) -> int:
        return int(self.starts[self.known])

    def source_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array(self.sources, dtype=np.int64)[self._part_of(documents)]

    def facts(self, documents: NDArray[np.int64]) -> NDArray:
        """What is known of each, in the given order."""
        found = np.empty(len(documents), dtype=FACTS)
        for part, here in self._by_part(documents):
            found[here] = mapped(self.indexes[part] / "facts.npy")[documents[here] - self.starts[part]]
        return found

    def signatures(self, documents: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(len(documents), 112); all of the documents must have one."""
        found: list[tuple[NDArray[np.int64], NDArray[np.uint32]]] = []
        for part, here in self._by_part(documents):
            rows = documents[here] - self.starts[part]
            places = mapped(self.indexes[part] / "facts.npy")["signature"][rows]
            found.append((here, mapped(self.indexes[part] / "signatures.npy")[places]))
        signed = np.empty((len(documents), found[0][1].shape[1]), dtype=np.uint32)
        for here, values in found:
            signed[here] = values
        return signed

    def _part_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, documents, side="right") - 1

    def _by_part(self, documents: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
        parts = self._part_of(documents)
        order = np.argsort(parts, kind="stable")
        present, start = np.unique(parts[order], return_index=True)
        return zip(present.tolist(), np.split(order, start[1:]), strict=False)


@dataclass(frozen=True)
class Grouping:
    """Writes the links that range `index % ranges` of band `index // ranges` shows; band 0 is the exact hash.

    Attributes:
        documents: all there are.
        bands: of a signature.
        ranges: into how many of equal size the keys of a band are cut.
        agreement: least share of places in which two signatures must agree.
        within_sources: whether documents of one source count as duplicates of each other.
        folder: where the links go: (first, other), int64, at most one pair an `other`.
    """

    documents: Documents
    bands: int
    ranges: int
    agreement: float
    within_sources: bool
    folder: Path

    def tasks(self) -> int:
        return (1 + self.bands) * self.ranges

    def output(self, index: int) -> Path:
        band, number = divmod(index, self.ranges)
        return self.folder / f"band-{band:02d}-{number:05d}.npy"

    def __call__(self, index: int) -> dict[str, Any]:
        band, number = divmod(index, self.ranges)
        pairs = bucket_pairs(*self._keys(band, number))
        # Whether two documents of an earlier corpus are alike was decided there.
        pairs = pairs[pairs[:, 1] >= self.documents.first_own]
        if band and not self.within_sources:
            pairs = pairs[self.documents.source_of(pairs[:, 0]) < self.documents.source_of(pairs[:, 1])]
        alike = self._alike(pairs, exact=band == 0)
        links = stars(alike) if band == 0 or self.within_sources else earliest(alike)
        with written_to_the_side(self.output(index)) as side, side.open("wb") as file:
            np.save(file, links)
        return {"candidates": len(pairs), "links": len(links)}

    def _keys(self, band: int, number: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        bounds = [-(-(edge << 64) // self.ranges) for edge in (number, number + 1)]
        keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for folder, start in zip(self.documents.indexes, self.documents.starts.tolist(), strict=False):
            sorted_keys, rows = mapped(folder / "bands.npy")[band - 1] if band else mapped(folder / "exact.npy")
            first, last = (
                len(rows) if edge >> 64 else int(np.searchsorted(sorted_keys, np.uint64(edge))) for edge in bounds
            )
            keys.append(np.array(sorted_keys[first:last]))
            documents.append(rows[first:last].astype(np.int64) + start)
        return np.concatenate(keys), np.concatenate(documents)

    def _alike(self, pairs: NDArray[np.int64], exact: bool) -> NDArray[np.int64]:
        found = [np.empty((0, 2), dtype=np.int64)]
        # Neighbors lie in the same files.
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        for offset in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[offset : offset + _PAIRS_AT_ONCE]
            needed, place = np.unique(some, return_inverse=True)
            values = self.documents.facts(needed)["digest"] if exact else self.documents.signatures(needed)
            one, other = place.reshape(-1, 2).T
            agreement = (values[one] == values[other]).mean(axis=1)
            found.append(some[agreement >= (1.0 if exact else self.agreement)])
        return np.concatenate(found)


def decide(
    documents: Documents,
    exact: Sequence[Path],
    near: Sequence[Path],
    keep_policy: KeepPolicy,
) -> NDArray:
    """What becomes of every own document that is alike another, and which document stands for it.

    Of exact copies the first stays. Of documents that are nearly alike stays one of an earlier corpus, if there is one,
    else as `keep_policy` says: the longest, the one of the source named first, or the one with the largest share of
    lines that end with punctuation; then the longest, then the first. With `earlier_source` a document goes if one of
    an earlier source or corpus is like it, and nothing else does.

    Memory: about 100 bytes a document that is alike another, however many bands show it.

    Args:
        exact: files of links by exact hash.
        near: files of links by signature.

    Returns:
        FATE, in the order of the documents, survivors included: EXACT, NEAR, KNOWN (in an earlier corpus) or KEPT.
    """
    copies = np.concatenate([_NO_LINKS, *(np.load(file) for file in exact)])
    links = _NO_LINKS
    merge = earliest if keep_policy == "earlier_source" else stars
    for file in near:
        links = merge(np.concatenate([links, np.load(file)]))
    if keep_policy != "earlier_source":
        links = _of_survivors(documents, links, copies[:, 1], keep_policy)
    links = links[~np.isin(links[:, 1], copies[:, 1])]
    fates = np.empty(len(copies) + len(links), dtype=FATE)
    fates["stands"], fates["document"] = np.concatenate([copies, links]).T
    fates["fate"] = np.repeat(np.array([EXACT, NEAR], dtype=np.uint8), [len(copies), len(links)])
    fates = fates[np.argsort(fates["document"])]
    # What an exact copy is like may have gone in favor of another document.
    fates["stands"] = _ends(fates["document"], fates["stands"])
    fates["fate"][fates["stands"] < documents.first_own] = KNOWN
    kept = np.unique(fates["stands"])
    survivors = np.zeros(int((kept >= documents.first_own).sum()), dtype=FATE)
    survivors["document"] = survivors["stands"] = kept[kept >= documents.first_own]
    fates = np.concatenate([fates, survivors])
    return fates[np.argsort(fates["document"])]


def earliest(links: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of all links to a document the one from the first."""
    ordered = links[np.lexsort((links[:, 0], links[:, 1]))]
    _, first = np.unique(ordered[:, 1], return_index=True)
    return ordered[first]


_NO_LINKS = np.empty((0, 2), dtype=np.int64)


def _of_survivors(
    documents: Documents, links: NDArray[np.int64], copies: NDArray[np.int64], keep_policy: KeepPolicy
) -> NDArray[np.int64]:
    """Links from the keep_policy of every group. An exact copy joins what it is like, but is gone already."""
    firsts = np.unique(links[:, 0])
    members = np.concatenate([links, np.stack([firsts, firsts], axis=1)])
    members = members[~np.isin(members[:, 1], copies)]
    group, document = members[:, 0], members[:, 1]
    facts = documents.facts(document)
    preferred: tuple[NDArray, ...] = (document, -facts["bytes"])
    if keep_policy == "source":
        preferred = (*preferred, documents.source_of(document))
    elif keep_policy == "quality":
        preferred = (*preferred, -facts["quality"])
    order = np.lexsort((*preferred, document >= documents.first_own, group))
    _, best = np.unique(group[order], return_index=True)
    chosen = np.repeat(document[order][best], np.diff(np.append(best, len(order))))
    others = np.stack([chosen, document[order]], axis=1)
    return others[(others[:, 0] != others[:, 1]) & (others[:, 1] >= documents.first_own)]


def _ends(documents: NDArray[np.int64], stands: NDArray[np.int64]) -> NDArray[np.int64]:
    """The end of every chain of what stands for what. Nothing stands for it.

    Args:
        documents: ascending.
        stands: what stands for each.
    """
    while len(documents):
        place = np.minimum(np.searchsorted(documents, stands), len(documents) - 1)
        after = np.where(documents[place] == stands, stands[place], stands)
        if np.array_equal(after, stands):
            break
        stands = after
    return stands
