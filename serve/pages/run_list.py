"""The rounds of a run and the runs beside it, with their verdicts, dates and reports."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.run.folder import RunFolder
from cluster.run.layout import ROUND_FOLDERS, STAGES
from cluster.run.rounds import kept_rounds, present_folders, present_round, round_folder

# Of a folder with more runs, those that were changed last.
MAX_RUNS = 100


def list_runs(run: RunFolder) -> dict[str, Any]:
    """Returns the last `MAX_RUNS` of the runs beside the served one, the number of all, and which is served here."""
    found = runs_beside(run)
    return {"here": run.root.resolve().name, "count": len(found), "runs": [overview(one) for one in found[:MAX_RUNS]]}


def list_rounds(run: RunFolder) -> list[dict[str, Any]]:
    """Returns what is shown of every round, the newest first: rankings, the accuracy of its reward model on held-out
    pairs, by how much its policy gets more reward than the fine-tuned model, its verdict, when the last of its stages
    finished, and whether it has a report."""
    present = present_folders(run.root)
    number = present_round(run.root)
    places = {kept: round_folder(run.root, kept) for kept in kept_rounds(run.root)} | (
        {number: run.root} if present else {}
    )
    found = []
    for kept, root in sorted(places.items(), reverse=True):
        of_round = RunFolder(root)
        manifests = {name: of_round.manifest(name) for name in ROUND_FOLDERS if root != run.root or name in present}
        metrics = {name: made.metrics for name, made in manifests.items() if made}
        policy = manifests.get("policy")
        has_report = manifests.get("report") is not None
        found.append(
            {
                "round": kept,
                "present": kept == number,
                "rankings": metrics.get("preferences", {}).get("rankings"),
                "accuracy": metrics.get("reward", {}).get("pair_accuracy"),
                "gain": metrics.get("report", {}).get("rewards", {}).get("reward"),
                "weights": policy.weights if policy else None,
                "verdict": first_line(metrics.get("report", {})),
                "when": made_at(root, (name for name, made in manifests.items() if made)),
                "report": has_report and report_page(root).is_file(),
            }
        )
    return found


def runs_beside(run: RunFolder) -> list[RunFolder]:
    """Lists the served run and the others in its folder, the one changed last first.

    A run has a recipe or a finished stage. Links to other places are left out, as are folders that this process cannot
    read.
    """
    root = run.root.resolve()
    try:
        folders = [one for one in root.parent.iterdir() if not one.is_symlink() and one.is_dir()]
    except OSError:
        folders = [root]
    found = [(changed, one) for one in folders if (changed := _changed(one)) or one == root]
    return [RunFolder(one) for _, one in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def overview(run: RunFolder) -> dict[str, Any]:
    """Returns what the list of runs shows of one: its finished stages, number of rounds, verdict and date.

    A damaged manifest is named in `trouble`.
    """
    row = {
        "name": run.root.name,
        "stages": 0,
        "of": len(STAGES),
        "rounds": 0,
        "at_work": False,
        "verdict": "",
        "when": "",
    }
    try:
        made = {stage.folder: manifest for stage in STAGES if (manifest := run.manifest(stage.folder))}
        present = present_folders(run.root)
        # A report that was made from an earlier round says nothing about this one.
        verdict = first_line(made["report"].metrics) if "report" in present and "report" in made else ""
        return row | {
            "stages": len(made),
            "rounds": len({*kept_rounds(run.root), *([present_round(run.root)] if present else [])}),
            "at_work": run.holder() is not None,
            "verdict": verdict,
            "when": made_at(run.root, made),
            "report": "report" in present and report_page(run.root).is_file(),
            "trouble": "",
        }
    except (UserError, OSError) as error:
        return row | {"report": False, "trouble": str(error)}


def report_of(run: RunFolder, name: str, number: int | None) -> Path | None:
    """Returns the page of a report, or None if there is none.

    Args:
        run: the served run.
        name: the name of a run beside it; "" for the served run itself.
        number: the round; None for the present one.
    """
    roots = {one.root.name: one.root for one in runs_beside(run)} if name else {"": run.root}
    root = roots.get(name)
    if root is None:
        return None
    if number is not None and number in kept_rounds(root):
        root = round_folder(root, number)
    elif number is not None and not (present_folders(root) and number == present_round(root)):
        return None
    page = report_page(root)
    return page if page.is_file() else None


def report_page(root: Path) -> Path:
    """Returns the path of the report of a run or a kept round."""
    return root / "report" / "index.html"


def first_line(metrics: Mapping[str, Any]) -> str:
    """Returns the first sentence of a report's verdict, or "" if it has none."""
    return next(iter(str(metrics.get("verdict", "")).splitlines()), "")


def made_at(root: Path, folders: Iterable[str]) -> str:
    """Returns the local time at which the last of these stages finished, or "" without any. The hard links of a kept
    round have the times of their files."""
    times = [(root / folder / "manifest.json").stat().st_mtime for folder in folders]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(max(times))) if times else ""


def _changed(root: Path) -> float:
    """Returns when a run's recipe or manifests were written last, in seconds since 1970; 0.0 if this is no run."""
    files = [root / "recipe.yaml", *(root / stage.folder / "manifest.json" for stage in STAGES)]
    try:
        return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
    except OSError:
        return 0.0
