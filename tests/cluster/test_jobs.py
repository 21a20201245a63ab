import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.recipe import load_recipe
from tests.cluster.test_cli import triptych

# A cluster with a job server; it ends with this process.
HEAD = """
import ray, sys, time
context = ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=True, dashboard_port=0,
                   object_store_memory=100_000_000, log_to_driver=False)
print(context.dashboard_url, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdout is not None
    yield f"http://{head.stdout.readline().strip()}"
    head.communicate("", timeout=30)


@pytest.mark.slow
def test_a_job_prints_its_log_and_gives_its_exit_code(job_server: str, recipe_path: Path) -> None:
    done = triptych("submit", "version", "--address", job_server, cwd=recipe_path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "triptych 0." in done.stdout
    # The recipe passes here and is refused there: the stage before it is missing.
    done = triptych("submit", "sft", recipe_path, "sft.epochs=3", "--address", job_server, cwd=recipe_path.parent)
    assert done.returncode == 2
    assert "run `triptych pretrain RECIPE` first" in done.stdout


def test_a_submitted_recipe_means_the_same_elsewhere(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cluster.jobs import resolved

    monkeypatch.chdir(tmp_path)
    recipe = resolved(load_recipe(recipe_path, ["run=''", "corpus.sources.0.path=text.txt", "rlhf.steps=7"]))
    assert recipe.run == str(tmp_path / "runs" / "tiny")
    assert recipe.corpus.sources[0].path == str(tmp_path / "text.txt")
    assert recipe.rlhf.steps == 7
