"""Runs the phases that remove repeated spans of sentences, and counts what they take."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

from cluster.recipe.recipe import Recipe
from cluster.run.folder import file_fingerprint, fingerprint
from pipelines.corpus.dedup.merge import FEW_PARTS
from pipelines.corpus.dedup.spans import (
    MARK_BITS,
    REASON,
    SPANS_AT_ONCE,
    MergeSpansPhase,
    RemoveSpansPhase,
    RepeatedSpansPhase,
    SpanPhase,
)
from pipelines.corpus.tables import Part, save_array
from pipelines.corpus.tasks import PhaseRunner, Report


def remove_repeated_spans(
    recipe: Recipe, parts: Sequence[Part], prepared: Sequence[Report], out: Path, progress: Progress
) -> tuple[list[Part], list[Report]]:
    """Leaves only the first of repeated spans of sentences.

    Args:
        prepared: the report of the first phase on each part.

    Returns:
        (parts, reports): the parts without the others, and `prepared` with the documents dropped for it.
    """

    runner = PhaseRunner(out, progress, recipe.cluster.deadline_seconds)
    work = out / "work"
    hashing = SpanPhase(tuple(parts), work / "spans")
    keys = [fingerprint([part.fingerprint, part.drop_near_duplicates]) for part in parts]
    counts = [
        report["spans"]
        for report in runner.run("hash sentences", "spans", keys, lambda index: (hashing.output(index),), hashing)
    ]
    starts = np.cumsum([0, *(report["kept"]["documents"] for report in prepared)]).tolist()
    folders, firsts = [hashing.output(index) for index in range(len(parts))], starts[:-1]
    if len(parts) > FEW_PARTS:
        grouped = span_groups(counts)
        merging = MergeSpansPhase(
            tuple(tuple(folders[part] for part in group) for group in grouped),
            tuple(tuple(starts[part] - starts[group[0]] for part in group) for group in grouped),
            tuple(work / "merged-spans" / f"{number:05d}" for number in range(len(grouped))),
        )
        merged = [fingerprint([keys[part] for part in group]) for group in grouped]
        runner.run("merge hashes", "merge-spans", merged, lambda group: (merging.outputs[group],), merging)
        folders, firsts = [*merging.outputs], [starts[group[0]] for group in grouped]
    ranges = max(1, -(-sum(counts) // SPANS_AT_ONCE))
    finding = RepeatedSpansPhase(tuple(folders), tuple(firsts), ranges, work / "repeated")
    key = fingerprint([keys, starts, ranges])
    runner.run("find repeated sentences", "repeated", [key] * ranges, lambda index: (finding.output(index),), finding)
    # Eight bytes a span that occurs more than once.
    marks = np.sort(np.concatenate([np.load(finding.output(index)) for index in range(ranges)]))
    stored = save_array(work / "marks.npy", marks)
    c4 = recipe.corpus.rules.c4 if recipe.corpus.rules else None
    removing = RemoveSpansPhase(
        parts=tuple(parts),
        starts=tuple(starts),
        marks=stored,
        bounds=tuple(np.searchsorted(marks, np.array(starts, np.uint64) << np.uint64(MARK_BITS)).tolist()),
        least=c4.sentences if c4 else 1,
        folder=work / "unrepeated",
        excluded=out / "excluded" if recipe.corpus.keep_excluded else None,
    )
    decided = [file_fingerprint(stored), removing.least, recipe.corpus.keep_excluded]
    keys = [fingerprint([part.fingerprint, decided]) for part in parts]
    found = runner.run("remove repeated sentences", "unrepeated", keys, removing.outputs, removing)
    left = [
        part._replace(file=removing.output(index), fingerprint=report["fingerprint"])
        for index, (part, report) in enumerate(zip(parts, found, strict=True))
    ]
    return left, [_counted(before, report) for before, report in zip(prepared, found, strict=True)]


def span_groups(counts: Sequence[int]) -> list[list[int]]:
    """Groups parts in order, those of a group with at most as many spans as a task compares, or a single part."""
    groups: list[list[int]] = []
    held = 0
    for part, count in enumerate(counts):
        if not groups or held + count > SPANS_AT_ONCE:
            groups.append([])
            held = 0
        groups[-1].append(part)
        held += count
    return groups


def _counted(prepared: Report, found: Report) -> Report:
    """Adds what the removal took to the report of the first phase on a part."""
    counted = {**prepared, "fingerprint": found["fingerprint"]}
    counted["kept"] = {"documents": found["documents"], "bytes": found["bytes"]}
    counted["repeated_sentences"] = found["sentences"]
    if found["dropped"]:
        for name, count in (("dropped", found["dropped"]), ("dropped_bytes", found["dropped_bytes"])):
            counted[name] = {**prepared[name], REASON: count}
        counted["drop_examples"] = {**prepared["drop_examples"], REASON: found["example"]}
    return counted
