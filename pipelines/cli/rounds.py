"""`triptych round`: list a run's rounds, show what differs between two, and bring an earlier one back."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import UserError
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import ROUND_FOLDERS, command_of
from cluster.run.rounds import kept_rounds, present_folders, present_round, restore_round, round_folder
from cluster.run.versions import Versions

ACTIONS = {"list": 0, "diff": 2, "restore": 1}
Action = Annotated[str, typer.Argument(metavar="list|diff|restore", help="what to do")]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[ROUND]...", help="two rounds for diff, one for restore")]


def rounds(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, e.g. runs/demo")],
    action: Action,
    numbers: Numbers = None,
) -> None:
    """List the rounds of judgements, compare two, or bring back an earlier one as the run's present round."""
    given = numbers or []
    if action not in ACTIONS or len(given) != ACTIONS[action]:
        raise UserError(f"write `triptych round {folder} list`, `… diff 3 4` or `… restore 3`")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder")
    run = RunFolder(folder)
    if action == "list":
        _print_list(run)
    elif action == "diff":
        _print_difference(run, *given)
    else:
        with run.lock():
            restore_round(run.root, given[0])
        print(f"{folder} has the stages of round {given[0]} again; what was there is kept as a round too")
        if run.manifest("policy") is not None:
            print(f"`triptych promote {folder} policy` has a running server serve its policy")


def _print_list(run: RunFolder) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    present, found = present_round(run.root), _rounds(run)
    live = Versions(run, "policy")
    served = live.live().weights if live.kept() else None
    # On a narrow terminal the accuracy is folded, and the rest is whole.
    table = Table(
        *(Column(name, no_wrap=True) for name in ("round", "made", "from", "rankings")),
        "pair accuracy",
        Column("policy", no_wrap=True),
        *(["lacks"] if any(len(one) < len(ROUND_FOLDERS) for one in found.values()) else []),
        title=str(run.root),
    )
    for number, manifests in found.items():
        preferences, reward, policy = (manifests.get(name) for name in ROUND_FOLDERS[:3])
        before = next((one.round_before for one in manifests.values() if one.round == number), None)
        weights = policy.weights if policy else None
        table.add_row(
            f"{number}{' (present)' if number == present else ''}",
            _made(run, number, manifests),
            "" if before is None else str(before),
            str(preferences.metrics.get("rankings", "")) if preferences else "",
            _figure(reward.metrics.get("pair_accuracy")) if reward else "",
            f"{(weights or '')[:8]}{' live' if weights and weights == served else ''}",
            *(
                [", ".join(command_of(name) for name in ROUND_FOLDERS if name not in manifests)]
                * (len(table.columns) > 6)
            ),
        )
    if not found:
        print(f"{run.root} has no round yet: `triptych run RECIPE` makes the first")
    else:
        Console().print(table)


def _rounds(run: RunFolder) -> dict[int, dict[str, Manifest]]:
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


def _made(run: RunFolder, number: int, manifests: Mapping[str, Manifest]) -> str:
    folder = round_folder(run.root, number)
    root = folder if folder.exists() else run.root
    newest = max((root / name / "manifest.json").stat().st_mtime for name in manifests)
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))


def _print_difference(run: RunFolder, first: int, second: int) -> None:
    from rich.console import Console
    from rich.table import Table

    found = _rounds(run)
    for number in (first, second):
        if number not in found:
            raise UserError(f"{run.root} has no round {number}; it has {', '.join(map(str, found)) or 'none'}")
    console = Console(soft_wrap=True)
    console.print(_judgements(run, first, second))
    table = Table("stage", "figure or key", f"round {first}", f"round {second}")
    for name in ROUND_FOLDERS:
        one, other = found[first].get(name), found[second].get(name)
        if one is None or other is None:
            if one is not other:
                table.add_row(command_of(name), "", *("" if side else "not made" for side in (one, other)))
            continue
        if one == other:
            table.add_row(command_of(name), "", "the same", "the same")
            continue
        for key, values in _differing({"recipe": one.config} | one.metrics, {"recipe": other.config} | other.metrics):
            table.add_row(command_of(name), key, *map(_figure, values))
    console.print(table)


def _judgements(run: RunFolder, first: int, second: int) -> str:
    """Says how many judgements that went in only one of the rounds took in, by source."""
    from cluster.feedback.judged import read_named

    used = []
    for number in (first, second):
        root = folder if (folder := round_folder(run.root, number)).exists() else run.root
        used.append({row.key for row in read_named(root / "preferences") if row.used})
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


def _figure(value: Any) -> str:
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
