"""Runs of the whole corpus stage, and their recipes."""

import json
from pathlib import Path

from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.corpus import run
from tests.demo_recipe import DEMO

CONTEXT = 64


def make_recipe(*sources: dict[str, object], **corpus: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "seed": 3,
            "model": {"vocabulary": 400, "context": CONTEXT},
            "corpus": {"sources": list(sources), "held_out_share": 0.1, **corpus},
            **DEMO,
        }
    )


def build(recipe: Recipe, folder: Path) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    run(recipe, RunFolder(folder.parent), folder)
    return json.loads((folder / "stats.json").read_text())
