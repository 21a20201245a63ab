"""The files that are sent with a job beside the project's code: modules that the recipe names, and small input files.

A job finds modules in its working directory. Files that the cluster does not have under their own path are copied into
the run folder, which all nodes share.
"""

import ast
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from cluster.errors import UserError, first_line
from cluster.recipe.base import PathKind, map_paths, named_functions
from cluster.recipe.loading import dump_recipe, load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import atomic_write, write_text
from cluster.run.folder import RunFolder, file_fingerprint, fingerprint
from cluster.run.storage.files import find_files, glob_root, relative_name
from cluster.run.storage.remote import is_remote
from cluster.runtime.session import PACKAGES

# The largest module, and the largest set of files of one path, that travel: the cluster's head keeps them in memory.
MODULE_BYTES = 16_000_000
FILE_BYTES = 16_000_000
IGNORED = ("__pycache__", "*.pyc", ".*")
# In the working directory of a job: the table of the files that travel, and their folder.
TABLE = "inputs.json"
INPUTS = "inputs"


def modules_of(recipe: Recipe) -> list[Path]:
    """Finds the modules of the functions that a recipe names, and the modules that these import.

    Modules of the project, of the standard library and of installed packages are left out.

    Returns:
        a .py file, or the folder of a package, for each.
    """
    found: dict[str, Path] = {}
    waiting = [one.name.partition(":")[0].partition(".")[0] for one in named_functions(recipe)]
    while waiting:
        name = waiting.pop()
        path = None if name in found else _own_module(name)
        if path is not None:
            found[name] = path
            waiting += {imported for file in _sources(path) for imported in _imports(file)}
    return [found[name] for name in sorted(found)]


def stage_modules(modules: Sequence[Path], folder: Path) -> list[str]:
    """Copies modules into the working directory of a job.

    Returns:
        a line for each module that is too large to travel.
    """
    notes = []
    for module in modules:
        size = sum(file.stat().st_size for file in ([module] if module.is_file() else _sources(module, "*")))
        if size > MODULE_BYTES:
            notes.append(
                f"{module} has {size / 1e6:.0f} MB and does not travel: install it on the cluster's nodes, or put it "
                "into a folder that they share and that their PYTHONPATH names"
            )
        elif module.is_file():
            shutil.copy(module, folder)
        else:
            shutil.copytree(module, folder / module.name, ignore=shutil.ignore_patterns(*IGNORED))
    return notes


def stage_files(recipe: Recipe, folder: Path) -> list[str]:
    """Copies small input files of a recipe, whose paths are absolute, into the working directory of a job.

    Returns:
        a line for each path whose files do not travel.
    """
    table: dict[str, dict[str, str]] = {}
    notes = []
    for pattern in _patterns(recipe):
        files = find_files(pattern)
        size = sum(file.size for file in files)
        if not files or size > FILE_BYTES:
            why = f"has {size / 1e6:,.0f} MB and does not travel" if files else "is not on this machine"
            notes.append(f"{pattern} {why}: the job looks for it on the cluster, under the same path")
            continue
        digest, root = _digest(pattern), glob_root(pattern)
        for file in files:
            place = folder / INPUTS / digest / relative_name(root, file.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.name, place)
        inner = Path(pattern).name if Path(pattern).is_file() else pattern[len(root) :].strip("/")
        table[pattern] = {"digest": digest, "inner": inner}
    (folder / TABLE).write_text(json.dumps(table), encoding="utf-8")
    return notes


def receive_files(folder: Path) -> None:
    """Copies files that travelled with a job into the run folder, and names them there in the job's recipe.

    Files that this machine has under their own path, with the same content, stay where they are. A copy is named by its
    content, so that a job does not change the files of another.

    Args:
        folder: the job's working directory, with `recipe.yaml`.

    Raises:
        UserError: the run folder cannot be written.
    """
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    recipe = load_recipe(folder / "recipe.yaml")

    def received(kind: PathKind, pattern: str) -> str:
        if kind is not PathKind.FILES or pattern not in table or _digest(pattern) == table[pattern]["digest"]:
            return pattern
        digest, inner = table[pattern]["digest"], table[pattern]["inner"]
        place = recipe.folder / INPUTS / digest
        if not place.exists():
            RunFolder(recipe.folder).create()
            with atomic_write(place) as side:
                shutil.copytree(folder / INPUTS / digest, side, dirs_exist_ok=True)
        return str(place / inner)

    try:
        placed: Recipe = map_paths(recipe, received)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {recipe.folder}: {first_line(error)}") from error
    write_text(folder / "recipe.yaml", dump_recipe(placed))


def _patterns(recipe: Recipe) -> list[str]:
    found: list[str] = []

    def collect(kind: PathKind, path: str) -> str:
        if kind is PathKind.FILES and not is_remote(path) and path not in found:
            found.append(path)
        return path

    map_paths(recipe, collect)
    return found


def _digest(pattern: str) -> str:
    """Hashes names and contents of the files below a path."""
    root = glob_root(pattern)
    return fingerprint(
        {relative_name(root, file.name): file_fingerprint(Path(file.name)) for file in find_files(pattern)}
    )


def _own_module(name: str) -> Path | None:
    """Finds the file or folder of a module that is neither the project's, nor Python's, nor installed."""
    if name in PACKAGES or name in sys.stdlib_module_names:
        return None
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    places = [*(spec.submodule_search_locations or []), spec.origin] if spec else []
    path = next((Path(place).resolve() for place in places if place), None)
    installed = {Path(place).resolve() for place in sysconfig.get_paths().values()}
    if path is None or not path.exists() or installed.intersection(path.parents):
        return None
    return path if path.is_dir() or path.suffix == ".py" else None


def _sources(module: Path, pattern: str = "*.py") -> Iterator[Path]:
    if module.is_file():
        yield module
        return
    for file in module.rglob(pattern):
        inner = file.relative_to(module).parts
        if file.is_file() and file.suffix != ".pyc" and not any(p.startswith(".") or p == "__pycache__" for p in inner):
            yield file


def _imports(file: Path) -> set[str]:
    """Lists the first parts of the names that a file imports; none of a file that is not Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return set()
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


if __name__ == "__main__":
    try:
        receive_files(Path.cwd())
    except UserError as error:
        print(f"triptych: {error}", file=sys.stderr)
        sys.exit(2)
