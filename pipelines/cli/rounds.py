"""The rounds of a run: `triptych loop` makes them from new judgements, tests and promotes them; `triptych round` lists
them, shows what differs between two, and brings an earlier one back."""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import ROUND_FOLDERS, command_of
from cluster.run.rounds import present_round, restore_round, round_folder
from cluster.run.trail import answer_open_round
from cluster.run.versions import Versions

ANSWERS = {"approve": True, "refuse": False}
ACTIONS = {"list": 0, "diff": 2, "restore": 1}
Action = Annotated[str, typer.Argument(metavar="list|diff|restore", help="what to do")]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[ROUND]...", help="two rounds for diff, one for restore")]


def loop(
    target: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="a run folder such as runs/demo, or a recipe")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[status|approve|refuse] [KEY=VALUE]...",
            help="print all decisions; answer on the round in progress; or keys of the recipe to set",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="rounds after which to end; never by default", min=1)] = None,
) -> None:
    """Wait for new judgements, train the next policy on them, and promote it if it passes, until Ctrl-C."""
    action = words[0] if words and "=" not in words[0] else ""
    if action not in ("", "status", *ANSWERS):
        raise UserError(f"loop: {action!r} is none of status, approve and refuse, and no KEY=VALUE")
    if target.is_dir() and not (target / "recipe.yaml").exists():
        raise UserError(f"{target} is not a run folder: it has no recipe.yaml")
    path, overrides = target / "recipe.yaml" if target.is_dir() else target, list(words or [])[bool(action) :]
    if target.is_dir():
        # The recipe may name the folder that the run had before it was moved or copied.
        overrides.append(f"run={target.absolute()}")
    recipe = load_recipe(path, overrides)
    run = RunFolder(recipe.folder)
    if action in ANSWERS:
        _answer(run, ANSWERS[action])
        return
    # Imported late: they bring the database's libraries, and torch.
    from pipelines.loop.service import describe_loop, require_finished, run_loop, without_early_promotion

    if action == "status":
        print(describe_loop(run, recipe.loop))
        return
    from pipelines.cli.stage_runner import check_without_ray, keep_recipe
    from pipelines.loop.work import StageWork

    require_finished(recipe, run)
    check_without_ray(recipe, run)
    with run.lock():
        keep_recipe(recipe, run)
    run_loop(recipe.loop, run, partial(StageWork, without_early_promotion(recipe), run), rounds)


def _answer(run: RunFolder, approved: bool) -> None:
    number = answer_open_round(run.root, approved, f"user {os.getuid()} on the command line")
    print(f"round {number} is {'approved' if approved else 'refused'}: the loop goes on with that")


def rounds(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, e.g. runs/demo")],
    action: Action,
    numbers: Numbers = None,
) -> None:
    """List the rounds of judgements, compare two, or bring back an earlier one as the run's present round."""
    given = numbers or []
    if action not in ACTIONS or len(given) != ACTIONS[action]:
        shown = "RUN" if str(folder) in ACTIONS else folder
        raise UserError(f"write `triptych round {shown} list`, `… diff 3 4` or `… restore 3`")
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
            print(f"`triptych promote {folder} policy` makes a running server serve its policy")


def _print_list(run: RunFolder) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    # Imported late: it brings the database's libraries.
    from cluster.run.round_differences import figure_text, rounds_of

    present, found = present_round(run.root), rounds_of(run)
    live = Versions(run, "policy")
    served = live.live().weights if live.kept() else None
    # On a narrow terminal only the accuracy is wrapped.
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
            figure_text(reward.metrics.get("pair_accuracy")) if reward else "",
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


def _made(run: RunFolder, number: int, manifests: Mapping[str, Manifest]) -> str:
    folder = round_folder(run.root, number)
    root = folder if folder.exists() else run.root
    newest = max((root / name / "manifest.json").stat().st_mtime for name in manifests)
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))


def _print_difference(run: RunFolder, first: int, second: int) -> None:
    from rich.console import Console
    from rich.table import Table

    # Imported late: it brings the database's libraries.
    from cluster.run.round_differences import differences, differing_judgements, figure_text

    rows = differences(run, first, second)
    console = Console(soft_wrap=True)
    console.print(differing_judgements(run, first, second))
    table = Table("stage", "figure or key", f"round {first}", f"round {second}")
    for row in rows:
        table.add_row(row.stage, row.name, *map(figure_text, row.values))
    console.print(table)
