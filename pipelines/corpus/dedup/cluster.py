"""Finds clusters of duplicates, a range of one band's keys per task, and decides which document of each stays.

A task holds the keys and document numbers of its range, and reads the signatures of candidate pairs from the index,
some thousands at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cluster.recipe.corpus import KeepPolicy
from pipelines.corpus.dedup.index import Index, key_range
from pipelines.corpus.heartbeat import progress
from pipelines.corpus.tables import map_array, save_array
from pipelines.corpus.tasks import Report

# A task takes about 100 bytes per key, so 0.4 GB.
KEYS_AT_ONCE = 4_000_000
_PAIRS_AT_ONCE = 50_000

KEPT, EXACT, NEAR, PREVIOUS = 0, 1, 2, 3
# The status of a document in a cluster, and the document that stays in its place: itself if it is KEPT.
DECISION = np.dtype([("document", np.int64), ("representative", np.int64), ("status", np.uint8)])
_NO_PAIRS = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class ClusterPhase:
    """Writes the duplicates that range `index % ranges` of band `index // ranges` shows; band 0 is the exact hash.

    Each file has pairs (representative, document), int64, at most one per document.

    Attributes:
        index: all documents.
        bands: the number of bands of a signature.
        ranges: the number of ranges of equal size into which the keys of a band are divided.
        agreement: least share of equal places in the signatures of near-duplicates.
        within_sources: whether near-duplicates within one source count.
        folder: the folder for the files.
    """

    index: Index
    bands: int
    ranges: int
    agreement: float
    within_sources: bool
    folder: Path

    def tasks(self) -> int:
        """Counts the tasks."""
        return (1 + self.bands) * self.ranges

    def output(self, index: int) -> Path:
        band, number = divmod(index, self.ranges)
        return self.folder / f"band-{band:02d}-{number:05d}.npy"

    def __call__(self, index: int) -> Report:
        band, number = divmod(index, self.ranges)
        candidates = candidate_pairs(*self._keys(band, number))
        # Pairs within the previous corpora were decided when those were built.
        candidates = candidates[candidates[:, 1] >= self.index.first_new]
        if band and not self.within_sources:
            first, second = candidates.T
            candidates = candidates[self.index.source_of(first) < self.index.source_of(second)]
        similar = self._similar(candidates, exact=band == 0)
        pairs = component_pairs(similar) if band == 0 or self.within_sources else earliest(similar)
        save_array(self.output(index), pairs)
        return {"candidates": len(candidates), "pairs": len(pairs)}

    def _keys(self, band: int, number: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Reads the keys of a range, and the document of each."""
        keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for folder, start in zip(self.index.folders, self.index.starts.tolist(), strict=False):
            stored, rows = map_array(folder / "bands.npy")[band - 1] if band else map_array(folder / "exact.npy")
            here = key_range(stored, number, self.ranges)
            keys.append(np.array(stored[here]))
            documents.append(rows[here].astype(np.int64) + start)
        return np.concatenate(keys), np.concatenate(documents)

    def _similar(self, pairs: NDArray[np.int64], exact: bool) -> NDArray[np.int64]:
        """Selects the pairs with equal hashes, or with signatures that agree."""
        found = [_NO_PAIRS]
        # Sorted, neighboring pairs lie in the same files.
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        for offset in range(0, len(pairs), _PAIRS_AT_ONCE):
            progress()
            some = pairs[offset : offset + _PAIRS_AT_ONCE]
            needed, place = np.unique(some, return_inverse=True)
            values = self.index.facts(needed)["digest"] if exact else self.index.signatures(needed)
            one, other = place.reshape(-1, 2).T
            agreement = (values[one] == values[other]).mean(axis=1)
            found.append(some[agreement >= (1.0 if exact else self.agreement)])
        return np.concatenate(found)


def candidate_pairs(keys: NDArray[np.uint64], documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (earlier, later) documents of one key, each with its predecessor and with the first, not all with all.

    A key that half of the corpus shares thus gives two pairs per document: memory grows linearly with the documents.

    Args:
        keys: (n,).
        documents: (n,), ascending within equal keys.

    Returns:
        (pairs, 2).
    """
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    position = np.arange(1, len(order))
    bucket = np.maximum.accumulate(np.concatenate(([0], np.where(same, 0, position)))) if len(order) else position
    later = position[same]
    ordered = documents[order]
    before = np.stack([ordered[later - 1], ordered[later]], axis=1)
    first = np.stack([ordered[bucket[later]], ordered[later]], axis=1)
    return np.concatenate([before, first[bucket[later] != later - 1]])


def component_pairs(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (first, other): each connected component's first document with each of its other ones, (n, 2)."""
    documents, place = np.unique(pairs, return_inverse=True)
    ends = place.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(len(documents),) * 2)
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    paired = np.stack([documents[first[component]], documents], axis=1)
    return paired[paired[:, 0] != paired[:, 1]]


def earliest(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Selects, of all pairs with the same second document, the one with the earliest first document."""
    ordered = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    _, first = np.unique(ordered[:, 1], return_index=True)
    return ordered[first]


def decide(index: Index, exact: Sequence[Path], near: Sequence[Path], keep_policy: KeepPolicy) -> NDArray:
    """Decides which document of each cluster stays.

    Of exact copies the first stays. Of near-duplicates a document of a previous corpus stays, if there is one, else the
    one that `keep_policy` prefers: the longest, that of the first source, or that with the largest share of lines
    ending in punctuation; ties go to the longest, then to the first. With `earlier_source` only documents similar to
    one of an earlier source or corpus are dropped.

    Memory: about 100 bytes per document in a cluster, however many bands show it.

    Args:
        exact: files of pairs by exact hash.
        near: files of pairs by signature.

    Returns:
        `DECISION` of every new document in a cluster, by document: EXACT, NEAR, PREVIOUS (in a previous corpus), KEPT.
    """
    copies = np.concatenate([_NO_PAIRS, *(np.load(file) for file in exact)])
    pairs = merged(near, earliest if keep_policy == "earlier_source" else component_pairs)
    if keep_policy != "earlier_source":
        pairs = _apply_keep_policy(index, pairs, copies[:, 1], keep_policy)
    pairs = pairs[~np.isin(pairs[:, 1], copies[:, 1])]
    dropped = np.empty(len(copies) + len(pairs), dtype=DECISION)
    dropped["representative"], dropped["document"] = np.concatenate([copies, pairs]).T
    dropped["status"] = np.repeat(np.array([EXACT, NEAR], dtype=np.uint8), [len(copies), len(pairs)])
    dropped = dropped[np.argsort(dropped["document"])]
    # The representative of an exact copy may itself be dropped as a near-duplicate.
    dropped["representative"] = _follow(dropped["document"], dropped["representative"])
    dropped["status"][dropped["representative"] < index.first_new] = PREVIOUS
    representatives = np.unique(dropped["representative"])
    representatives = representatives[representatives >= index.first_new]
    kept = np.zeros(len(representatives), dtype=DECISION)
    kept["document"] = kept["representative"] = representatives
    decisions = np.concatenate([dropped, kept])
    return decisions[np.argsort(decisions["document"])]


def merged(files: Sequence[Path], merge: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Merges files of pairs in time linear in all of them.

    New pairs are merged into the old ones when they have become as many: a merge after each file would process the old
    pairs once a file.
    """
    pairs, new = _NO_PAIRS, [_NO_PAIRS]
    for file in files:
        new.append(np.load(file))
        if sum(map(len, new)) >= max(len(pairs), _PAIRS_AT_ONCE):
            pairs, new = merge(np.concatenate([pairs, *new])), [_NO_PAIRS]
    return merge(np.concatenate([pairs, *new]))


def _apply_keep_policy(
    index: Index, pairs: NDArray[np.int64], copies: NDArray[np.int64], keep_policy: KeepPolicy
) -> NDArray[np.int64]:
    """Replaces the first document of each cluster's pairs by the preferred one.

    An exact copy connects the documents of its cluster, but cannot be preferred.
    """
    firsts = np.unique(pairs[:, 0])
    members = np.concatenate([pairs, np.stack([firsts, firsts], axis=1)])
    members = members[~np.isin(members[:, 1], copies)]
    cluster, document = members[:, 0], members[:, 1]
    facts = index.facts(document)
    preferred: tuple[NDArray, ...] = (document, -facts["bytes"])
    if keep_policy == "source":
        preferred = (*preferred, index.source_of(document))
    elif keep_policy == "quality":
        preferred = (*preferred, -facts["quality"])
    order = np.lexsort((*preferred, document >= index.first_new, cluster))
    _, best = np.unique(cluster[order], return_index=True)
    chosen = np.repeat(document[order][best], np.diff(np.append(best, len(order))))
    others = np.stack([chosen, document[order]], axis=1)
    return others[(others[:, 0] != others[:, 1]) & (others[:, 1] >= index.first_new)]


def _follow(documents: NDArray[np.int64], representatives: NDArray[np.int64]) -> NDArray[np.int64]:
    """Follows chains of representatives to their ends, which have none themselves.

    Args:
        documents: ascending.
        representatives: the representative of each document.
    """
    while len(documents):
        place = np.minimum(np.searchsorted(documents, representatives), len(documents) - 1)
        after = np.where(documents[place] == representatives, representatives[place], representatives)
        if np.array_equal(after, representatives):
            break
        representatives = after
    return representatives
