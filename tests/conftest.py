"""What the tests share."""

import gc
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import create_engine

from cluster.feedback.store import DRIVER
from cluster.recipe.model import Cluster
from cluster.runtime.session import collect_garbage_rarely, connect

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
# Fixtures that several files share, and that take longest to start.
SHARED = ("fleet", "server")
# Files whose tests take longest, the longest first.
LONG = ("test_demo.py", "trainer/test_loop.py", "test_docs.py", "runtime/test_memory.py", "runtime/test_session.py")


def pytest_configure() -> None:
    collect_garbage_rarely()


def pytest_collection_finish() -> None:
    """Has garbage collections pass over all that was imported: they would look through it again and again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    # At the end libraries count what is left, and complain.
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests as slow by their fixtures, and has the files that take longest, and those that share a fixture, begin
    first.

    Processes that share the tests take whole files of them. Groups of files would start each shared fixture once, but
    pytest-xdist 3.8 marks groups in a field that pytest 9.2 no longer reads: with `--dist loadgroup` each process ran
    single tests, and made the fixtures of every file.
    """
    fixtures: dict[Path, set[str]] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures.setdefault(item.path, set()).update(item.fixturenames)
            if HEAVY.intersection(item.fixturenames):
                item.add_marker(pytest.mark.slow)

    def place(item: pytest.Item) -> int:
        long = [number for number, name in enumerate(LONG) if item.path.as_posix().endswith(name)]
        if long:
            return long[0] * 2
        shared = [number for number, name in enumerate(SHARED) if name in fixtures.get(item.path, ())]
        return 1 + 2 * shared[0] if shared else 2 * len(LONG)

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
