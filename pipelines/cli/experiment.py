"""`triptych experiment`: trains small models on variants of the corpus, and compares them."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from pipelines.cli.stage_runner import check_without_ray, connect_for


def experiment(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file with a section experiment")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="keys of the recipe to set", show_default=False),
    ] = None,
) -> None:
    """Train small models on variants of the corpus, and say with intervals which of them helps."""
    loaded = load_recipe(recipe, overrides)
    if loaded.experiment is None:
        raise UserError(f"{recipe} has no section experiment: name a target and variants of the corpus")
    run = RunFolder(loaded.folder)
    check_without_ray(loaded, run)
    with run.lock(), connect_for(loaded):
        # Imported late: it brings the corpus stage.
        from pipelines.experiment.run import run_experiment

        run_experiment(loaded, loaded.folder / "experiment")
