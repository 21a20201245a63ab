"""Mixes sources by weight: texts are repeated or left out until each source has its share of the tokens to train on.

Which texts are left out depends on their hashes and the seed alone. What is held out stays as it is.
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
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.dedup.split import DROPPED, HELD_OUT, TRAIN, document_position
from pipelines.corpus.read.sources import source_names
from pipelines.corpus.tasks import Task, run_tasks, written_to_the_side
from pipelines.corpus.tokens.cache import READ_AGAIN, Tokens
from pipelines.corpus.tokens.stage import chosen_documents

# Up to four times, repeated text is worth nearly as much as new (Muennighoff et al. 2023, arXiv:2305.16264).
MOST_REPEATS = 4


@dataclass(frozen=True)
class TokenCount:
    """Writes, of part `index`, the tokens of every document to train on, 0 for all others: int64, in `folder`."""

    prepared: tuple[Path, ...]
    choices: tuple[Path, ...]
    tokens: Tokens
    folder: Path

    def __call__(self, index: int) -> dict[str, Any]:
        encoded = self.tokens.encode(self.prepared[index], self.choices[index])
        stored = self.tokens.of(self.prepared[index])
        chosen = np.load(self.choices[index]) == TRAIN
        counts = np.zeros(len(chosen), dtype=np.int64)
        counts[chosen] = [
            len(ids)
            for batch in chosen_documents(self.prepared[index], self.choices[index], TRAIN)
            for ids in stored.ids(batch["digest"])
        ]
        _save(self.output(index), counts)
        return {"encoded": encoded}

    def output(self, index: int) -> Path:
        return self.folder / f"{self.prepared[index].stem}.tokens.npy"


@dataclass(frozen=True)
class Mixture:
    """The parts to tokenize: those prepared, and after them one more for every time that some texts are repeated.

    Attributes:
        sources: of every part.
        fingerprints: of every part's bytes.
        account: what `stats.json` says of it; None if the recipe has no weights.
        encoded: documents that had to be encoded for it.
    """

    prepared: tuple[Path, ...]
    choices: tuple[Path, ...]
    sources: tuple[str, ...]
    fingerprints: tuple[str, ...]
    account: dict[str, Any] | None = None
    encoded: int = 0


def weigh(whole: Mixture, recipe: Recipe, tokens: Tokens, work: Path, progress: Progress) -> Mixture:
    """Counts the tokens of every source, and mixes them by the recipe's weights.

    Args:
        whole: all that there is.
        tokens: where they are kept.
        work: where token counts, new choices and markers go.
    """
    given = zip(source_names(recipe.corpus.sources), recipe.corpus.sources, strict=True)
    weights = {name: source.weight or 0.0 for name, source in given}
    counting = TokenCount(whole.prepared, whole.choices, tokens, work / "mix")
    parts = [
        Task(
            file.stem,
            fingerprint([whole.fingerprints[index], file_fingerprint(whole.choices[index]), tokens.fingerprint]),
            (counting.output(index), tokens.file(file)),
        )
        for index, file in enumerate(whole.prepared)
    ]
    deadline = recipe.cluster.deadline_seconds
    reports = run_tasks("count tokens", work / "done" / "count", parts, counting, progress, deadline)
    counts = [np.load(counting.output(index)) for index in range(len(parts))]
    mixed = mix(whole, counts, weights, recipe.seed, work / "mix")
    return replace(mixed, encoded=sum(report["encoded"] for report in reports))


def mix(
    whole: Mixture, tokens: Sequence[NDArray[np.int64]], weights: Mapping[str, float], seed: int, folder: Path
) -> Mixture:
    """Writes new choices, and links to the parts that are read again, to `folder`.

    Args:
        whole: all that there is.
        tokens: of every document to train on, 0 of the others, an array a part.
        weights: of every source, relative to each other.
    """
    available = _by_source(whole.sources, [count.sum() for count in tokens], weights)
    factors = plan(available, weights)
    times = _times(whole, tokens, factors, seed)
    prepared, choices, parts = [], [], []
    for reading in range(max(1, *(int(often.max(initial=0)) for often in times))):
        for part, (file, choice, often) in enumerate(zip(whole.prepared, whole.choices, times, strict=True)):
            if reading and often.max(initial=0) <= reading:
                continue
            again = folder / f"{file.stem}{READ_AGAIN}{reading}.parquet"
            prepared.append(_linked(file, again) if reading else file)
            choices.append(_save(folder / f"{prepared[-1].stem}.npy", _chosen(np.load(choice), often, reading)))
            parts.append(part)
    used = _by_source(
        whole.sources, [(count * often).sum() for count, often in zip(tokens, times, strict=True)], weights
    )
    account = _account(weights, available, factors, used)
    sources, fingerprints = (tuple(of[part] for part in parts) for of in (whole.sources, whole.fingerprints))
    return Mixture(tuple(prepared), tuple(choices), sources, fingerprints, account)


def plan(available: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """How often each source is read, so that its tokens are its share.

    There are as many tokens afterwards as before, or as many as leave no source read more than MOST_REPEATS times.
    """
    some = {source: weight for source, weight in weights.items() if available[source]}
    shares = {source: weight / sum(some.values()) for source, weight in some.items()}
    most = min((MOST_REPEATS * available[source] / share for source, share in shares.items()), default=0.0)
    total = min(float(sum(available.values())), most)
    return {source: shares[source] * total / available[source] if source in shares else 0.0 for source in weights}


def repeats(tokens: NDArray[np.int64], positions: NDArray[np.float64], factor: float) -> NDArray[np.int64]:
    """How often each document of a source is read: all as often as the factor is whole, some of them once more.

    Those are the first by position whose tokens make up the rest, to the nearest document.

    Args:
        tokens: (documents,); 0 of a document that is not trained on.
        positions: (documents,).
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
        members = [index for index, of in enumerate(whole.sources) if of == source]
        if not members:
            continue
        # Another seed than the held-out split's: that one's positions below its share are not here.
        positions = np.concatenate([_positions(whole.prepared[index], seed + 2) for index in members])
        often = repeats(np.concatenate([tokens[index] for index in members]), positions, factor)
        ends = np.cumsum([len(tokens[index]) for index in members])
        for index, part in zip(members, np.split(often, ends[:-1]), strict=True):
            times[index] = part
    return times


def _positions(prepared: Path, seed: int) -> NDArray[np.float64]:
    digests = pq.read_table(prepared, columns=["digest"])["digest"].to_pylist()
    return np.array([document_position(digest, seed) for digest in digests], dtype=np.float64)


def _chosen(choices: NDArray[np.uint8], often: NDArray[np.int64], reading: int) -> NDArray[np.uint8]:
    """The choices of the first or a later reading: what is held out is read once."""
    left_out = (choices != HELD_OUT) & (often <= reading) if reading == 0 else often <= reading
    return np.where(left_out, DROPPED, choices).astype(np.uint8)


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


def _save(path: Path, values: NDArray[Any]) -> Path:
    with written_to_the_side(path) as side, side.open("wb") as file:
        np.save(file, values)
    return path


def _linked(file: Path, path: Path) -> Path:
    with written_to_the_side(path) as side:
        side.unlink(missing_ok=True)
        side.hardlink_to(file)
    return path
