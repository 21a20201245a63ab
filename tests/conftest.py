"""What the tests share."""

from collections.abc import Iterator

import pytest

from cluster.recipe import Cluster
from cluster.session import connect


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray cluster of two CPUs for the whole session."""
    with connect(Cluster(cpus=2, gpus=0), object_store_gb=0.5):
        yield
