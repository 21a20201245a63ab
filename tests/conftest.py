"""What the tests share."""

import gc
import os
import re
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlmodel import create_engine

from cluster.feedback.store import DRIVER
from cluster.recipe.model import Cluster
from cluster.runtime.session import collect_garbage_rarely, connect

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]
POSTGRES = os.environ.get("TRIPTYCH_TEST_POSTGRES_URL")
SMALL_RECIPE = """
name: tiny
run: {run}
corpus: {{sources: [{{kind: files, path: {text}}}]}}
pretrain: &training {{learning_rate: 5e-4}}
sft: {{sources: [{{kind: function, function: 'pipelines.demo.conversations:conversations'}}]}}
collect: {{sources: [{{kind: function, function: 'pipelines.demo.questions:prompts'}}]}}
reward: *training
"""


# Fixtures that start Ray, an engine, a server or a browser: tests that ask for one are slow without saying so.
HEAVY = frozenset({"ray_session", "fleet", "server", "browser", "head"})
# Fixtures that several files share and that take longest to start, and the folders below which they are.
SHARED = {"fleet": "tests/actors/", "server": "tests/serve/"}
# Files whose tests take longest, and SHARED fixtures, the longest first.
LONG = (
    "test_demo.py",
    "fleet",
    "trainer/test_loop.py",
    "server",
    "test_docs.py",
    "runtime/test_memory.py",
    "runtime/test_session.py",
    "learner/test_learner_workers.py",
    "runtime/test_jobs.py",
    "rlhf/test_evaluation.py",
    "tasks/test_models.py",
    "pipelines/test_dpo.py",
    "test_dependencies.py",
)


def pytest_configure() -> None:
    collect_garbage_rarely()


def pytest_collection_finish() -> None:
    """Has garbage collections pass over all that was imported: they would look through it again and again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    # At the end libraries count what is left, and complain.
    gc.unfreeze()


@cache
def group_of(file: str) -> str:
    """Returns the fixture that a file shares with others and its tests ask for, or else the file.

    Args:
        file: its path from the root of the repository.
    """
    asked = (name for name, folder in SHARED.items() if file.startswith(folder))
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((name for name in asked if re.search(rf"[(\s]{name}: {name.title()}\b", text)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadFileScheduling | None":
    """Has one process run all files that share a fixture, which is then started once, and others file by file.

    The groups of pytest-xdist 3.8 (`--dist loadgroup`) are marked in a field that pytest 9.2 no longer reads: each
    process ran single tests, and made the fixtures of every file.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(super()._split_scope(nodeid))

    return GroupScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests as slow by their fixtures, and has those that take longest begin first."""
    for item in items:
        if isinstance(item, pytest.Function) and HEAVY.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)

    def place(item: pytest.Item) -> int:
        group = group_of(item.nodeid.partition("::")[0])
        return next((number for number, name in enumerate(LONG) if group.endswith(name)), len(LONG))

    items.sort(key=place)


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A small recipe with one text file, whose run folder is tmp_path/run."""
    text_file = tmp_path / "text.txt"
    text_file.write_text("some text")
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL_RECIPE.format(run=tmp_path / "run", text=text_file))
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'feedback.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def feedback_url(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[str]:
    """A new database; on PostgreSQL where TRIPTYCH_TEST_POSTGRES_URL names a server on which databases may be made."""
    if request.param == "sqlite":
        yield sqlite_url
        return
    if not POSTGRES:
        pytest.skip("TRIPTYCH_TEST_POSTGRES_URL names no PostgreSQL server")
    name = f"triptych_{uuid.uuid4().hex}"
    server = create_engine(POSTGRES.replace("postgresql:", f"{DRIVER}:"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        # A server process that a test killed may still be seen as connected.
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray cluster of two CPUs for the whole session."""
    with connect(Cluster(cpus=2, gpus=0), object_store_gb=0.5):
        yield
