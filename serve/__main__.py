"""`python -m serve RUN`: serves a run's finished models."""

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from cluster.failures import StageError, UserError
from cluster.recipe import Recipe
from cluster.run import RunFolder
from cluster.session import connect
from cluster.stages import STAGES
from serve.app import finished_models, require_free_port, serve_until_interrupted


def recipe_of(run: RunFolder, host: str, port: int) -> Recipe:
    """The recipe that a run was made with, from its manifests. What unfinished stages need plays no part in serving.

    Raises:
        UserError: a manifest holds what this version does not understand.
    """
    unfinished = {"sources": [{"kind": "guide"}]}
    sections = {"corpus": {"sources": [{"kind": "countries"}]}, "sft": unfinished, "collect": unfinished}
    for stage in STAGES:
        if manifest := run.manifest(stage.folder):
            sections |= {name: manifest.config[name] for name in stage.sections if name in manifest.config}
    place = {"name": "serve", "run": str(run.root), "serve": {"host": host, "port": port}}
    try:
        return Recipe.model_validate(sections | place)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{run.root} was made by another version: {where}: {problem['msg']}") from error


def main() -> int:
    """Parses the arguments, connects to Ray and serves until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m serve", description="Serve the finished models of a run.")
    parser.add_argument("run", type=Path, help="the run's folder, e.g. runs/demo")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all of this machine's")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    try:
        run = RunFolder(arguments.run.absolute())
        # Both are checked again once Ray is there; here they fail within a second.
        finished_models(run)
        require_free_port(arguments.host, arguments.port)
        recipe = recipe_of(run, arguments.host, arguments.port)
        with connect(recipe.cluster):
            serve_until_interrupted(recipe, run)
    except (UserError, StageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
