"""`triptych loop`: makes the next policy from new judgements, tests it, and promotes it."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from cluster.run.trail import answer_open_round

ANSWERS = {"approve": True, "refuse": False}


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
