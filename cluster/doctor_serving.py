"""Whether a run can be served, and what keeps a model of a run that is being served from answering."""

from typing import get_args

from cluster.failures import StageError, UserError
from cluster.memory import memory_needs
from cluster.plan import resources_here
from cluster.ports import require_free_port
from cluster.recipe import Recipe
from cluster.run import RunFolder, file_fingerprint
from cluster.serve_recipe import Served
from cluster.version_commands import ask_server, server_file


def serving_problems(run: RunFolder) -> list[str]:
    """What is wrong with the finished models' files, and with the replicas of a server that runs."""
    models = [name for name in get_args(Served) if run.manifest(name) is not None]
    return [*(problem for name in models for problem in _damaged(run, name)), *_replicas(run)]


def serving_hindrances(recipe: Recipe, run: RunFolder) -> list[str]:
    """What would keep a server from starting here just now, if none of this run is running."""
    if server_file(run.root).exists():
        return []
    found, resources = [], resources_here(recipe.cluster)
    needed = memory_needs(recipe, on_gpu=resources.gpus > 0)["serve"]
    free = recipe.cluster.memory_gb or resources.memory_gb
    if needed > free:
        found.append(f"serving needs about {needed:.1f} GB of memory and {free:.1f} GB are free")
    try:
        require_free_port(recipe.serve.host, recipe.serve.port)
    except UserError as error:
        found.append(str(error))
    return found


def _damaged(run: RunFolder, name: str) -> list[str]:
    folder, manifest = run.path(name), run.require(name, name)
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).exists()]
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        missing.append("model.safetensors")
    found = [f"{folder} lacks {', '.join(missing)}: remove it and run its stage again"] if missing else []
    if manifest.weights and len(weights) == 1 and file_fingerprint(weights[0]) != manifest.weights:
        found.append(f"{weights[0]} is not what its stage wrote: remove {folder} and run the stage again")
    return found


def _replicas(run: RunFolder) -> list[str]:
    file = server_file(run.root)
    if not file.exists():
        return []
    try:
        states = ask_server(run.root, "replicas")
    except (UserError, StageError) as error:
        return [str(error)]
    return [
        f"{name} is {state['status'].lower()}: {state['why'] or 'Ray Serve does not say why'}"
        for name, state in states.items()
        if state["status"] != "HEALTHY"
    ]
