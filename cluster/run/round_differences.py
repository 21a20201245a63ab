"""The rounds of a run side by side: the judgements, keys of the recipe and figures in which two of them differ."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.feedback.judged import read_records
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import ROUND_FOLDERS, command_of
from cluster.run.rounds import kept_rounds, present_folders, present_round, round_folder


@dataclass(frozen=True)
class Difference:
    """A difference between one stage of two rounds: the dotted name of a figure or key, and both values; no name where
    the stage is the same, or is missing in one of them."""

    stage: str
    name: str
    values: tuple[Any, Any]


def rounds_of(run: RunFolder) -> dict[int, dict[str, Manifest]]:
    """Returns the manifests of every round by its number, the present one last."""
    found = {
        number: {
            name: manifest
            for name in ROUND_FOLDERS
            if (manifest := RunFolder(round_folder(run.root, number)).manifest(name)) is not None
        }
        for number in kept_rounds(run.root)
    }
    if there := present_folders(run.root):
        found[present_round(run.root)] = {name: run.require(name) for name in there}
    return found


def differences(run: RunFolder, first: int, second: int) -> list[Difference]:
    """Lists what differs in two rounds, stage by stage.

    Raises:
        UserError: the run has no such round.
    """
    found, rows = rounds_of(run), []
    for number in (first, second):
        if number not in found:
            raise UserError(f"{run.root} has no round {number}; it has {', '.join(map(str, found)) or 'none'}")
    for name in ROUND_FOLDERS:
        stage, one, other = command_of(name), found[first].get(name), found[second].get(name)
        if one is None or other is None:
            if one is not other:
                rows.append(Difference(stage, "", ("" if one else "not made", "" if other else "not made")))
        elif one == other:
            rows.append(Difference(stage, "", ("the same", "the same")))
        else:
            both = _differing({"recipe": one.config} | one.metrics, {"recipe": other.config} | other.metrics)
            rows += [Difference(stage, key, values) for key, values in both]
    return rows


def differing_judgements(run: RunFolder, first: int, second: int) -> str:
    """Says how many judgements that went in only one of the rounds took in, by source."""
    used = []
    for number in (first, second):
        root = folder if (folder := round_folder(run.root, number)).exists() else run.root
        used.append({row.key for row in read_records(root / "preferences") if row.used})
    parts = []
    for number, own, other in ((first, used[0], used[1]), (second, used[1], used[0])):
        only = Counter(source for source, _, _ in own - other)
        said = ", ".join(f"{count} {source}" for source, count in sorted(only.items())) or "none"
        parts.append(f"only round {number}: {said}")
    return f"judgements in both: {len(used[0] & used[1])}; {'; '.join(parts)}"


def _differing(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields the dotted names of values that differ; an estimate with its interval is one value."""
    if isinstance(one, dict) and isinstance(other, dict) and "value" not in one:
        for key in sorted(one.keys() | other.keys()):
            yield from _differing(one.get(key), other.get(key), f"{name}.{key}".strip("."))
    elif one != other:
        yield name, (one, other)


def figure_text(value: Any) -> str:
    """Writes a figure, with its interval if it has one, or any other value in at most 80 characters."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
