"""A node of a cluster goes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.session import ROOT

pytestmark = pytest.mark.slow


def after(what: str, root: Path) -> dict[str, Any]:
    """What came of it, in a process of its own."""
    command = [sys.executable, "-m", "tests.actors.nodes", what, root]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def test_a_node_that_is_taken_away_with_notice_leaves_a_checkpoint(tmp_path: Path):
    found = after("preempted", tmp_path)
    assert found["steps"] == list(range(found["of"]))
    assert 2 < found["noticed"] < found["of"]


def test_a_node_that_goes_without_notice_takes_no_sample_with_it(tmp_path: Path):
    found = after("removed", tmp_path)
    assert found["samples"] == {f"removed-{i}": list(range(8)) for i in range(24)}
    assert found["deaths"] == 1
    assert found["versions"] == [1, 1]
