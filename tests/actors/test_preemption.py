"""A node that goes with notice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.session import ROOT


@pytest.mark.slow
def test_a_node_that_is_taken_away_with_notice_leaves_a_checkpoint(tmp_path: Path):
    command = [sys.executable, "-m", "tests.actors.preempted", tmp_path]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["steps"] == list(range(found["of"]))
    assert 2 < found["noticed"] < found["of"]
