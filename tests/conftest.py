"""What the tests share."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import create_engine

from cluster.feedback.store import DRIVER
from cluster.recipe.model import Cluster
from cluster.runtime.session import connect

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


# What takes longest to start: the fleet of engines that tests of the actors share, and the real server.
SHARED = ("fleet", "server")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that processes that share the tests end together: the whole loop. Meanwhile
    another has the files that need the fleet, and those that need the server, so that these start once."""
    shared = {
        item.path: place
        for place, name in enumerate(SHARED, 1)
        for item in items
        if isinstance(item, pytest.Function) and name in item.fixturenames
    }
    items.sort(key=lambda item: 0 if item.path.name == "test_demo.py" else shared.get(item.path, 1 + len(SHARED)))


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
