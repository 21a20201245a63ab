"""Drops contaminated documents and duplicates, and splits the others, in phases.

Contamination -> signatures and index -> merged indexes -> clusters -> split. Between the phases only numbers pass:
hashes, signatures, pairs, assignments.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from cluster.errors import UserError
from cluster.recipe.corpus import Corpus, Decontaminate
from cluster.recipe.recipe import Recipe
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.dedup.cluster import KEYS_AT_ONCE, ClusterPhase, decide
from pipelines.corpus.dedup.decontaminate import DecontaminatePhase, read_items
from pipelines.corpus.dedup.index import Index, IndexPhase, mark_complete, previous_indexes
from pipelines.corpus.dedup.merge import FEW_PARTS, MergePhase, groups, merged_index
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.dedup.split import Dropped, SplitPhase, finish_split
from pipelines.corpus.tables import Part, map_array, save_array
from pipelines.corpus.tasks import PhaseRunner, Report


class Deduplicated(NamedTuple):
    """The numbers of dropped documents, the assignment file of every part, and the contamination found (None if not
    looked for)."""

    dropped: Dropped
    assignments: tuple[Path, ...]
    contamination: Report | None


def check_inputs(corpus: Corpus) -> None:
    """Reads the evaluation files and the indexes of previous corpora, so that an error shows before the long first
    phase.

    Raises:
        UserError: an evaluation file or the index of a previous corpus cannot be read.
    """
    previous_indexes(corpus.previous_corpora, rows_in_a_band(corpus.near_duplicate_similarity))
    for file in _evaluation_files(corpus.decontaminate) if corpus.decontaminate else ():
        for _ in read_items(file):
            pass


def deduplicate(recipe: Recipe, parts: Sequence[Part], out: Path, progress: Progress) -> Deduplicated:
    """Decides which documents are dropped as contaminated or duplicate, and which are held out.

    Raises:
        UserError: an evaluation file or a previous corpus cannot be read.
    """
    phases = _Phases(recipe, tuple(parts), out, PhaseRunner(out, progress, recipe.cluster.deadline_seconds))
    contamination, left_out = phases.decontaminate()
    index, keys = phases.index(left_out)
    decisions = phases.cluster(phases.merge(index, keys), keys)
    return Deduplicated(*phases.split(index, decisions, left_out), contamination)


@dataclass(frozen=True)
class _Phases:
    recipe: Recipe
    parts: tuple[Part, ...]
    out: Path
    runner: PhaseRunner

    def decontaminate(self) -> tuple[Report | None, tuple[Path, ...] | None]:
        """Looks for evaluation items; returns a report and, for every part, the file of the rows to leave out."""
        given = self.recipe.corpus.decontaminate
        if given is None:
            return None, None
        files = _evaluation_files(given)
        phase = DecontaminatePhase(
            parts=tuple(part.file for part in self.parts),
            files=files,
            fingerprints=tuple(file_fingerprint(file) for file in files),
            n=given.n,
            drop=given.action == "drop",
            rows=self.out / "work" / "contaminated",
            found=self.out / "contamination",
        )
        keys = [fingerprint([part.fingerprint, phase.fingerprints, phase.n, phase.drop]) for part in self.parts]
        reports = self.runner.run("look for evaluation items", "decontaminate", keys, phase.outputs, phase)
        items = sum((Counter(report["items"]) for report in reports), Counter[str]())
        found = {
            "documents": sum(report["documents"] for report in reports),
            "action": given.action,
            "n": given.n,
            "looked_for": reports[0]["looked_for"],
            "too_short": reports[0]["too_short"],
            "items": dict(items.most_common()),
        }
        return found, tuple(phase.rows_file(index) for index in range(len(reports)))

    def index(self, left_out: tuple[Path, ...] | None) -> tuple[Index, list[str]]:
        """Signs and indexes the parts; returns the index, previous corpora included, and a fingerprint per part."""
        corpus = self.recipe.corpus
        rows = rows_in_a_band(corpus.near_duplicate_similarity)
        previous = previous_indexes(corpus.previous_corpora, rows)
        folder = self.out / "index"
        phase = IndexPhase(self.parts, left_out, folder, rows)
        gone = [file_fingerprint(file) for file in left_out] if left_out else [""] * len(self.parts)
        keys = [
            fingerprint([part.fingerprint, part.drop_near_duplicates, rows_out, rows])
            for part, rows_out in zip(self.parts, gone, strict=True)
        ]
        reports = self.runner.run("sign and index", "index", keys, lambda index: (phase.output(index),), phase)
        mark_complete(folder, rows)
        names = list(dict.fromkeys(part.source for part in self.parts))
        index = Index(
            folders=(*previous, *(phase.output(index) for index in range(len(reports)))),
            counts=(*(len(map_array(path / "facts.npy")) for path in previous), *(r["documents"] for r in reports)),
            previous=len(previous),
            sources=(*[-1] * len(previous), *(names.index(part.source) for part in self.parts)),
        )
        return index, [*(file_fingerprint(path / "facts.npy") for path in previous), *keys]

    def merge(self, index: Index, keys: Sequence[str]) -> Index:
        """Merges the indexes of many parts into few; returns the index as it is if there are few."""
        if len(index.folders) <= FEW_PARTS:
            return index
        grouped = groups(index)
        outputs = tuple(self.out / "work" / "merged" / f"{group:05d}" for group in range(len(grouped)))
        phase = MergePhase(tuple(tuple(index.folders[part] for part in group) for group in grouped), outputs)
        merged_keys = [fingerprint([keys[part] for part in group]) for group in grouped]
        self.runner.run("merge indexes", "merge", merged_keys, lambda group: (outputs[group],), phase)
        return merged_index(index, grouped, outputs)

    def cluster(self, index: Index, keys: Sequence[str]) -> Path:
        """Finds the clusters; returns the file of the decisions on their documents."""
        corpus = self.recipe.corpus
        ranges = -(-sum(index.counts) // KEYS_AT_ONCE)
        agreement = least_agreement(corpus.near_duplicate_similarity)
        within_sources = corpus.keep_policy != "earlier_source"
        bands = PERMUTATIONS // rows_in_a_band(corpus.near_duplicate_similarity)
        folder = self.out / "work" / "pairs"
        phase = ClusterPhase(index, bands, max(ranges, 1), agreement, within_sources, folder)
        key = fingerprint([list(keys), index.sources, phase.ranges, agreement, within_sources])
        every = range(phase.tasks())
        self.runner.run("find duplicates", "cluster", [key] * len(every), lambda task: (phase.output(task),), phase)
        pairs = [phase.output(task) for task in every]
        decisions = decide(index, pairs[: phase.ranges], pairs[phase.ranges :], corpus.keep_policy)
        return save_array(self.out / "work" / "decisions.npy", decisions)

    def split(
        self, index: Index, decisions: Path, left_out: tuple[Path, ...] | None
    ) -> tuple[Dropped, tuple[Path, ...]]:
        """Splits the documents that are left; returns the numbers of dropped ones, and the assignment file of every
        part."""
        starts = index.starts[index.previous :]
        phase = SplitPhase(
            parts=self.parts,
            starts=tuple(starts.tolist()),
            decisions=decisions,
            bounds=tuple(np.searchsorted(np.load(decisions)["document"], starts).tolist()),
            left_out=left_out,
            assignments=self.out / "work" / "assignments",
            duplicates=self.out / "duplicates",
            held_out_share=self.recipe.corpus.held_out_share,
            seed=self.recipe.seed,
        )
        decided = [phase.held_out_share, phase.seed, file_fingerprint(decisions)]
        gone = [file_fingerprint(file) for file in left_out] if left_out else []
        keys = [fingerprint([part.fingerprint, decided, gone]) for part in self.parts]
        reports = self.runner.run("split", "split", keys, phase.outputs, phase)
        dropped = finish_split(phase, reports)
        return dropped, tuple(phase.assignments_file(index) for index in range(len(reports)))


def _evaluation_files(given: Decontaminate) -> tuple[Path, ...]:
    # A file may be called gl[ob].jsonl.
    named = [[name] if Path(name).is_file() else sorted(glob(name, recursive=True)) or [name] for name in given.files]
    files = tuple(Path(name).absolute() for names in named for name in names)
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise UserError(f"corpus.decontaminate: there is no file {missing}; fix the path")
    return files
