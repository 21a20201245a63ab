"""`triptych status`: a run's stages, its progress and its next command."""

from pathlib import Path

import pytest

from cluster.run.folder import RunFolder
from cluster.run.metrics import MetricsWriter
from tests.helpers import triptych_here
from tests.serve.support.run_folder import at_work, write_run


def status(run: RunFolder) -> str:
    done = triptych_here("status", run.root, cwd=run.root)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def run(recipe_path: Path, tmp_path: Path) -> RunFolder:
    run = write_run(tmp_path / "run", finished=2)
    run.recipe_path.write_text(recipe_path.read_text())
    return run


def test_a_run_says_what_is_done_and_what_comes_next(run: RunFolder) -> None:
    shown = status(run)
    words = [line.split() for line in shown.splitlines() if line.startswith("│ ")]
    assert {row[1]: row[3] for row in words if row[1] != "│"} == {
        "corpus": "stale",
        "pretrain": "stale",
        "sft": "pending",
        "collect": "pending",
        "reward": "pending",
        "rlhf": "pending",
        "evaluate": "pending",
    }
    assert f"`triptych run {run.recipe_path} run={run.root}` does what is left: corpus, pretrain, sft" in shown


def test_a_stage_in_progress_shows_its_steps(run: RunFolder) -> None:
    run.begin("sft", "mark")
    metrics = MetricsWriter(run.partial("sft"), steps=40)
    metrics.write(0, loss=3.0)
    metrics.write(9, loss=2.5)
    with at_work(run):
        shown = status(run)
    assert "step 10 of 40, 0 s left, loss 2.5" in " ".join(shown.replace("│", " ").split())
    assert "working" in shown
    assert "works on it: corpus, pretrain, sft" in shown


def test_a_folder_without_a_recipe_is_refused_in_one_line(tmp_path: Path) -> None:
    done = triptych_here("status", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "it has no recipe.yaml" in done.stderr


def test_a_damaged_manifest_is_a_problem_of_its_stage_alone(run: RunFolder) -> None:
    (run.path("corpus") / "manifest.json").write_text('{"seconds": "abc"}')
    done = triptych_here("doctor", "--runs", run.root.parent, cwd=run.root.parent)
    assert "is damaged" in " ".join(done.stdout.split())
    assert "does what is left" in done.stdout
