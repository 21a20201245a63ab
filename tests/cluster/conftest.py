import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.runtime.session import ROOT

RECIPE = """
name: tiny
run: {run}
corpus: {{sources: [{{kind: files, path: {text}}}]}}
pretrain: &training {{learning_rate: 5e-4}}
sft: {{sources: [{{kind: function, function: 'pipelines.demo.conversations:conversations'}}]}}
collect: {{sources: [{{kind: function, function: 'pipelines.demo.questions:prompts'}}]}}
reward: *training
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A small recipe with one text file, whose run folder is tmp_path/run."""
    text = tmp_path / "text.txt"
    text.write_text("some text")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(run=tmp_path / "run", text=text))
    return path


def triptych(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "pipelines", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
