"""An empty feedback database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.feedback import Feedback, open_feedback


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Feedback]:
    """Yields a new SQLite database in the folder of the test."""
    with open_feedback(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened
