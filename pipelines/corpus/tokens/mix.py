"""Mixes sources by weight: repeats or drops documents until each source has its share of the training tokens.

Which documents are dropped depends on their hashes and the seed alone. The held-out split is not affected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.progress import Progress

from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.dedup.split import DROPPED, HELD_OUT, TRAIN, document_position
from pipelines.corpus.tables import Part, save_array, selected_rows
from pipelines.corpus.tasks import Phase, Report, Task, run_tasks
from pipelines.corpus.tokens.cache import REPEATED, TokenCache

# Text repeated up to four times is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264).
MOST_REPEATS = 4


@dataclass(frozen=True)
class Mixture:
    """The parts to tokenize, where a part that is repeated occurs several times under different names.

    Attributes:
        assignments: a file per part, with DROPPED, TRAIN or HELD_OUT of each row.
        account: figures by source for `stats.json`; None if the recipe has no weights.
        encoded: documents that had to be encoded in order to mix.
    """

    parts: tuple[Part, ...]
    assignments: tuple[Path, ...]
    account: dict[str, Any] | None = None
    encoded: int = 0


@dataclass(frozen=True)
class CountTokensPhase(Phase):
    """Writes the number of tokens of each training document of part `index`, 0 of other documents; (rows,) int64."""

    parts: tuple[Path, ...]
    assignments: tuple[Path, ...]
    tokens: TokenCache
    folder: Path

    def only(self, index: int) -> "CountTokensPhase":
        return replace(self, parts=(self.parts[index],), assignments=(self.assignments[index],))

    def __call__(self, index: int) -> Report:
        part, assignments = self.parts[index], self.assignments[index]
        encoded = self.tokens.encode(part, assignments)
        stored, training = self.tokens.of(part), np.load(assignments) == TRAIN
        counts = np.zeros(len(training), dtype=np.int64)
        counts[training] = [
            len(ids) for batch in selected_rows(part, training, ["digest"]) for ids in stored.ids(batch["digest"])
        ]
        save_array(self.output(index), counts)
        return {"encoded": encoded}

    def output(self, index: int) -> Path:
        return self.folder / f"{self.parts[index].stem}.tokens.npy"


def weigh(
    whole: Mixture, weights: Mapping[str, float], recipe: Recipe, tokens: TokenCache, work: Path, progress: Progress
) -> Mixture:
    """Counts the tokens of every source and mixes the sources by their weights.

    Args:
        whole: all parts, each once.
        weights: the weight of every source, relative to the others.
        work: folder for token counts, new assignments and markers.

    Raises:
        DeadlineError: no part was counted within the recipe's deadline.
    """
    phase = CountTokensPhase(tuple(part.file for part in whole.parts), whole.assignments, tokens, work / "mix")
    tasks = [
        Task(
            part.file.stem,
            fingerprint([part.fingerprint, file_fingerprint(assignments), tokens.fingerprint]),
            (phase.output(index), tokens.file(part.file)),
        )
        for index, (part, assignments) in enumerate(zip(whole.parts, whole.assignments, strict=True))
    ]
    deadline = recipe.cluster.deadline_seconds
    reports = run_tasks("count tokens", work / "done" / "count", tasks, phase, progress, deadline)
    counts = [np.load(phase.output(index)) for index in range(len(tasks))]
    mixed = mix(whole, counts, weights, recipe.seed, work / "mix")
    return replace(mixed, encoded=sum(report["encoded"] for report in reports))


def mix(
    whole: Mixture, tokens: Sequence[NDArray[np.int64]], weights: Mapping[str, float], seed: int, folder: Path
) -> Mixture:
    """Writes new assignments, and links to repeated parts, to `folder`.

    Args:
        whole: all parts, each once.
        tokens: the tokens of every training document, 0 of other documents; an array (rows,) per part.
        weights: the weight of every source, relative to the others.
        seed: the seed of the choice of documents.
    """
    names = [part.source for part in whole.parts]
    available = _by_source(names, [count.sum() for count in tokens], weights)
    factors = plan(available, weights)
    times = _times(whole, tokens, factors, seed)
    parts, assignments = [], []
    for reading in range(max(1, *(int(often.max(initial=0)) for often in times))):
        for part, file, often in zip(whole.parts, whole.assignments, times, strict=True):
            if reading and often.max(initial=0) <= reading:
                continue
            link = folder / f"{part.file.stem}{REPEATED}{reading}.parquet"
            parts.append(part._replace(file=_linked(part.file, link)) if reading else part)
            assigned = _assignments(np.load(file), often, reading)
            assignments.append(save_array(folder / f"{parts[-1].file.stem}.npy", assigned))
    used = _by_source(names, [(count * often).sum() for count, often in zip(tokens, times, strict=True)], weights)
    return Mixture(tuple(parts), tuple(assignments), _account(weights, available, factors, used))


def plan(available: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """Computes how often to read each source so that its share of the tokens is its share of the weights.

    The total number of tokens stays the same, unless a source would be read more than MOST_REPEATS times: then it is
    reduced until none is.
    """
    some = {source: weight for source, weight in weights.items() if available[source]}
    shares = {source: weight / sum(some.values()) for source, weight in some.items()}
    most = min((MOST_REPEATS * available[source] / share for source, share in shares.items()), default=0.0)
    total = min(float(sum(available.values())), most)
    return {source: shares[source] * total / available[source] if source in shares else 0.0 for source in weights}


def repeats(tokens: NDArray[np.int64], positions: NDArray[np.float64], factor: float) -> NDArray[np.int64]:
    """Computes how often to read each document of a source: the factor's integer part, and some documents once more.

    Those are the first documents by position whose tokens make up the fractional part, to the nearest document.

    Args:
        tokens: (documents,); 0 of a document outside the training split.
        positions: the position of each document in [0, 1), (documents,).

    Returns:
        (documents,).
    """
    whole = int(factor)
    order = np.argsort(positions, kind="stable")
    reached = np.cumsum(tokens[order]) - tokens[order] / 2
    once_more = np.zeros(len(tokens), dtype=bool)
    once_more[order] = reached < (factor - whole) * tokens.sum()
    return np.where(tokens > 0, whole + once_more, 0)


def _times(
    whole: Mixture, tokens: Sequence[NDArray[np.int64]], factors: Mapping[str, float], seed: int
) -> list[NDArray[np.int64]]:
    times = [np.zeros(len(count), dtype=np.int64) for count in tokens]
    for source, factor in factors.items():
        members = [index for index, part in enumerate(whole.parts) if part.source == source]
        if not members:
            continue
        # Another seed than the split's, which has held out the documents at the lowest positions by its own.
        positions = np.concatenate([_positions(whole.parts[index].file, seed + 2) for index in members])
        often = repeats(np.concatenate([tokens[index] for index in members]), positions, factor)
        ends = np.cumsum([len(tokens[index]) for index in members])
        for index, of_part in zip(members, np.split(often, ends[:-1]), strict=True):
            times[index] = of_part
    return times


def _positions(part: Path, seed: int) -> NDArray[np.float64]:
    digests = pq.read_table(part, columns=["digest"])["digest"].to_pylist()
    return np.array([document_position(digest, seed) for digest in digests], dtype=np.float64)


def _assignments(assigned: NDArray[np.uint8], often: NDArray[np.int64], reading: int) -> NDArray[np.uint8]:
    """Computes the assignments in reading 0, 1, … of a part; held-out documents are in the first one alone."""
    dropped = (assigned != HELD_OUT) & (often <= reading) if reading == 0 else often <= reading
    return np.where(dropped, DROPPED, assigned).astype(np.uint8)


def _by_source(sources: Sequence[str], tokens: Sequence[int], weights: Mapping[str, float]) -> dict[str, int]:
    totals = dict.fromkeys(weights, 0)
    for source, count in zip(sources, tokens, strict=True):
        totals[source] += int(count)
    return totals


def _account(
    weights: Mapping[str, float], available: Mapping[str, int], factors: Mapping[str, float], used: Mapping[str, int]
) -> dict[str, Any]:
    total = sum(weights.values())
    return {
        source: {
            "weight": weight,
            "share_wanted": round(weight / total, 4),
            "share": round(used[source] / max(sum(used.values()), 1), 4),
            "tokens_available": available[source],
            "tokens": used[source],
            "times_read": round(factors[source], 4),
        }
        for source, weight in weights.items()
    }


def _linked(file: Path, path: Path) -> Path:
    with atomic_write(path) as side:
        side.unlink(missing_ok=True)
        side.hardlink_to(file)
    return path
