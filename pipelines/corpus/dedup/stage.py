"""From prepared parts to what becomes of each document: contamination, duplicates, then the split.

Between the phases only numbers pass: keys, signatures, links, choices.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from cluster.errors import UserError
from cluster.recipe.corpus import Corpus, Decontaminate
from cluster.recipe.recipe import Recipe
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.dedup.cluster import KEYS_AT_ONCE, Documents, Grouping, decide
from pipelines.corpus.dedup.decontaminate import Decontamination, read_items
from pipelines.corpus.dedup.index import Indexing, known_indexes, mapped, write_index
from pipelines.corpus.dedup.minhash import PERMUTATIONS, least_agreement, rows_in_a_band
from pipelines.corpus.dedup.split import Choosing, Selection, selection
from pipelines.corpus.tasks import Report, Task, run_tasks, written_to_the_side


class Prepared(NamedTuple):
    """A part of the first phase: its file, the hash of the file's bytes and the name of its source."""

    file: Path
    fingerprint: str
    source: str


class Chosen(NamedTuple):
    """What was decided, the choices of every part, and what was found of evaluation files, if looked for."""

    selection: Selection
    choices: tuple[Path, ...]
    contamination: Report | None


def check_readable(corpus: Corpus) -> None:
    """Reads what `choose` needs besides the parts, because the phase before it takes long.

    Raises:
        UserError: an evaluation file or the index of an earlier corpus cannot be read.
    """
    known_indexes(corpus.previous_corpora, rows_in_a_band(corpus.near_duplicate_similarity))
    for file in _evaluation_files(corpus.decontaminate) if corpus.decontaminate else ():
        for _ in read_items(file):
            pass


def choose(recipe: Recipe, prepared: Sequence[Prepared], out: Path, progress: Progress) -> Chosen:
    """Decides what is left out as contaminated or duplicate and what is held out.

    Raises:
        UserError: an evaluation file or an earlier corpus cannot be read, or fewer than two documents are left.
    """
    phases = _Phases(recipe, tuple(prepared), out, progress)
    contamination, left_out = phases.decontaminate()
    documents, keys = phases.index(left_out)
    fates = phases.group(documents, keys)
    return Chosen(*phases.choose(documents, fates, left_out), contamination)


@dataclass(frozen=True)
class _Phases:
    recipe: Recipe
    prepared: tuple[Prepared, ...]
    out: Path
    progress: Progress

    def decontaminate(self) -> tuple[Report | None, tuple[Path, ...] | None]:
        """What was found, and for every part the file of the rows to leave out."""
        given = self.recipe.corpus.decontaminate
        if given is None:
            return None, None
        files = _evaluation_files(given)
        task = Decontamination(
            prepared=self._files,
            files=files,
            fingerprints=tuple(file_fingerprint(file) for file in files),
            n=given.n,
            drop=given.action == "drop",
            rows=self.out / "work" / "contaminated",
            found=self.out / "contamination",
        )
        keys = [fingerprint([part.fingerprint, task.fingerprints, task.n, task.drop]) for part in self.prepared]
        reports = self._run("look for evaluation items", "contamination", keys, task.outputs, task)
        items = sum((Counter(report["items"]) for report in reports), Counter[str]())
        found = {
            "documents": sum(report["documents"] for report in reports),
            "action": given.action,
            "n": given.n,
            "looked_for": reports[0]["looked_for"],
            "too_short": reports[0]["too_short"],
            "items": dict(items.most_common()),
        }
        return found, tuple(task.rows_file(index) for index in range(len(reports)))

    def index(self, left_out: tuple[Path, ...] | None) -> tuple[Documents, list[str]]:
        """All documents, those of earlier corpora first, and the hash of what is known of each part's."""
        corpus = self.recipe.corpus
        rows = rows_in_a_band(corpus.near_duplicate_similarity)
        known = known_indexes(corpus.previous_corpora, rows)
        folder = self.out / "index"
        task = Indexing(self._files, left_out, folder, rows, corpus.keep_policy == "quality")
        gone = [file_fingerprint(file) for file in left_out] if left_out else [""] * len(self.prepared)
        keys = [
            fingerprint([part.fingerprint, rows_out, rows, task.quality])
            for part, rows_out in zip(self.prepared, gone, strict=True)
        ]
        reports = self._run("index", "index", keys, lambda index: (task.output(index),), task)
        write_index(folder, rows)
        names = list(dict.fromkeys(part.source for part in self.prepared))
        documents = Documents(
            indexes=(*known, *(task.output(index) for index in range(len(reports)))),
            counts=(*(len(mapped(path / "facts.npy")) for path in known), *(r["documents"] for r in reports)),
            known=len(known),
            sources=(*[-1] * len(known), *(names.index(part.source) for part in self.prepared)),
        )
        return documents, [*(file_fingerprint(path / "facts.npy") for path in known), *keys]

    def group(self, documents: Documents, keys: Sequence[str]) -> Path:
        """The file of what becomes of the documents that are alike others."""
        corpus = self.recipe.corpus
        ranges = -(-sum(documents.counts) // KEYS_AT_ONCE)
        agreement = least_agreement(corpus.near_duplicate_similarity)
        across = corpus.keep_policy == "earlier_source"
        bands = PERMUTATIONS // rows_in_a_band(corpus.near_duplicate_similarity)
        task = Grouping(documents, bands, max(ranges, 1), agreement, not across, self.out / "work" / "links")
        key = fingerprint([list(keys), documents.sources, task.ranges, agreement, across])
        every = range(task.tasks())
        self._run("find duplicates", "links", [key] * len(every), lambda index: (task.output(index),), task)
        links = [task.output(index) for index in every]
        fates = decide(documents, links[: task.ranges], links[task.ranges :], corpus.keep_policy)
        file = self.out / "work" / "fates.npy"
        with written_to_the_side(file) as side, side.open("wb") as stream:
            np.save(stream, fates)
        return file

    def choose(
        self, documents: Documents, fates: Path, left_out: tuple[Path, ...] | None
    ) -> tuple[Selection, tuple[Path, ...]]:
        """The split of what is left, and a file of choices a part."""
        starts = documents.starts[documents.known :]
        task = Choosing(
            prepared=self._files,
            starts=tuple(starts.tolist()),
            fates=fates,
            bounds=tuple(np.searchsorted(np.load(fates)["document"], starts).tolist()),
            left_out=left_out,
            choices=self.out / "work" / "choices",
            duplicates=self.out / "duplicates",
            held_out_share=self.recipe.corpus.held_out_share,
            seed=self.recipe.seed,
        )
        decided = [task.held_out_share, task.seed, file_fingerprint(fates)]
        gone = [file_fingerprint(file) for file in left_out] if left_out else []
        keys = [fingerprint([part.fingerprint, decided, gone]) for part in self.prepared]
        reports = self._run("choose", "choices", keys, task.outputs, task)
        chosen = selection(task, reports, [part.source for part in self.prepared])
        return chosen, tuple(task.choices_file(index) for index in range(len(reports)))

    @property
    def _files(self) -> tuple[Path, ...]:
        return tuple(part.file for part in self.prepared)

    def _run(
        self,
        phase: str,
        name: str,
        keys: Sequence[str],
        outputs: Callable[[int], tuple[Path, ...]],
        task: Callable[[int], Report],
    ) -> list[Report]:
        parts = [Task(f"{index:05d}", key, outputs(index)) for index, key in enumerate(keys)]
        done, deadline = self.out / "work" / "done" / name, self.recipe.cluster.deadline_seconds
        return run_tasks(phase, done, parts, task, self.progress, deadline)


def _evaluation_files(given: Decontaminate) -> tuple[Path, ...]:
    files = tuple(Path(name).absolute() for name in given.files)
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise UserError(f"corpus.decontaminate: there is no file {missing}; mend the path")
    return files
