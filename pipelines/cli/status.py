"""`triptych status`: the stages of one run, what is happening now, and the next command."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.layout import Stage, stages_of
from cluster.run.progress import Progress, duration, progress_of
from cluster.run.server_client import served_at
from cluster.run.stages import stage_state

if TYPE_CHECKING:
    from rich.table import Table


def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, e.g. runs/demo")],
) -> None:
    """Show the stages of a run with their times, what is in progress, and the command to give next."""
    from rich.console import Console

    run = RunFolder(folder)
    if not run.recipe_path.exists():
        raise UserError(f"{folder} is not a run folder: it has no recipe.yaml")
    recipe, console = load_recipe(run.recipe_path), Console(soft_wrap=True)
    table, undone, wrong = stages_table(recipe, run)
    console.print(table)
    console.print(next_command(run, undone), highlight=False, markup=False)
    if wrong:
        raise typer.Exit(1)


def stages_table(recipe: Recipe, run: RunFolder) -> tuple["Table", list[str], int]:
    """Returns a table of a run's stages, the names of those that are not done, and how many have a problem."""
    from rich.markup import escape
    from rich.table import Table

    holder, now = run.holder(), progress_of(run)
    title = f"{run.root}" + (f" (in use by {holder})" if holder else "")
    table = Table("stage", "state", "took", "details", title=title)
    names, folders, problems = list[str](), set[str](), 0
    for stage in stages_of(recipe):
        try:
            state = stage_state(stage, recipe, run, folders)
            name, why = str(state.name), state.why
        except UserError as error:
            name, why = "error", str(error)
            problems += 1
        took, finished = _times(stage, run) if name in ("done", "stale") else ("", "")
        if name == "done":
            why = ""
        elif now and now.stage == stage.name and (holder or name == "partial"):
            name, why = ("working", _progress_text(now, True)) if holder else (name, f"{_progress_text(now)}; {why}")
        table.add_row(stage.name, name, took, escape("; ".join(filter(None, [finished, why]))))
        if name != "done":
            names.append(stage.name)
            folders.add(stage.folder)
    return table, names, problems


def next_command(run: RunFolder, undone: list[str]) -> str:
    """Names the next command of a run, `triptych run` or `triptych serve`, or the process that works on it."""
    address = served_at(run.root)
    served = f"; it is served at {address}" if address else ""
    if holder := run.holder():
        return f"{holder} works on it: {', '.join(undone)} to do{served}"
    # The recipe may name the folder that the run had before it was moved or copied.
    command = shlex.join(["triptych", "run", str(run.recipe_path), f"run={run.root}"])
    if undone:
        return f"`{command}` does what is left: {', '.join(undone)}{served}"
    return f"all done{served}" if served else f"all done: `triptych serve {run.root}`"


def _times(stage: Stage, run: RunFolder) -> tuple[str, str]:
    manifest = run.manifest(stage.folder)
    if manifest is None:
        return "", ""
    end = time.localtime((run.path(stage.folder) / "manifest.json").stat().st_mtime)
    return duration(manifest.seconds), time.strftime("%Y-%m-%d %H:%M", end)


def _progress_text(now: Progress, at_work: bool = False) -> str:
    parts = [f"round {now.round}"] if now.round > 1 else []
    if now.step is not None:
        parts.append(f"step {now.step:,}" + (f" of {now.steps:,}" if now.steps else ""))
    if at_work and now.left is not None:
        parts.append(f"{duration(now.left)} left")
    return ", ".join([*parts, *(f"{name} {value:.3g}" for name, value in now.figures.items())]) or "just begun"
