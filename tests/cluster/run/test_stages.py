import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.layout import Stage, stage_named
from cluster.run.stages import Result, check_sources, run_stage, stage_config, stage_state

# A stage of four steps, one file each, which resumes from the files that it finds.
COUNTER = """
import os, signal
from cluster.run.stages import Result
def run(recipe, run, out):
    there = len(list(out.glob("step-*")))
    for step in range(there, 4):
        if os.environ.get("KILL_AT_STEP") == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
        (out / f"step-{step}").write_text(str(there))
    return Result(metrics={"steps": 4}, weights="abc")
"""

RUNNER = """
import os, signal, sys
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from cluster.run.layout import Stage
from cluster.run.stages import run_stage
left = int(sys.argv[2])
def counted(real):
    def call(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*args, **kwargs)
    return call
os.rename, os.replace = counted(os.rename), counted(os.replace)
recipe = load_recipe(sys.argv[1], sys.argv[3:])
import counter_stage
stage = Stage("count", "count", ("pretrain",), (), "count")
run_stage(stage, counter_stage.run, recipe, RunFolder(recipe.folder))
"""

STAGE = Stage("count", "count", ("pretrain",), (), "count")


def count(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    return importlib.import_module("counter_stage").run(recipe, run, out)


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "counter_stage.py").write_text(COUNTER)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    sys.modules.pop("counter_stage", None)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def run_in_child(recipe: Path, renames: int, *overrides: str, kill_at_step: str = "") -> int:
    environment = {**os.environ, "KILL_AT_STEP": kill_at_step}
    command = [sys.executable, "-c", RUNNER, str(recipe), str(renames), *overrides]
    return subprocess.run(command, env=environment, timeout=180, check=False).returncode


@pytest.mark.usefixtures("counter")
def test_a_stage_is_run_then_skipped_then_stale(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    run = RunFolder(recipe.folder)
    assert stage_state(STAGE, recipe, run).name == "pending"
    assert run_stage(STAGE, count, recipe, run) == "done"
    assert run_stage(STAGE, count, recipe, run) == "skipped"
    assert run.require("count").metrics == {"steps": 4}
    other = load_recipe(recipe_path, ["pretrain.epochs=2"])
    state = stage_state(STAGE, other, run)
    assert (state.name, state.why) == ("stale", "pretrain.epochs changed since")
    assert run_stage(STAGE, count, other, run) == "done"
    assert sorted(path.name for path in run.path("count").iterdir()) == [
        "manifest.json",
        *(f"step-{i}" for i in range(4)),
    ]


def test_stages_after_an_outdated_stage_are_stale(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    run = RunFolder(recipe.folder)
    first = Stage("corpus", "corpus", ("corpus",), (), "first")
    second = Stage("pretrain", "base", ("pretrain",), ("corpus",), "second")
    for stage in (first, second):
        run_stage(stage, lambda *_: Result(), recipe, run)
    assert stage_state(second, recipe, run, {"preferences"}).name == "done"
    state = stage_state(second, recipe, run, {"corpus"})
    assert (state.name, state.why) == ("stale", "corpus will be made again first")


@pytest.mark.usefixtures("counter")
def test_execution_keys_do_not_make_a_stage_stale(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    run_stage(STAGE, count, recipe, RunFolder(recipe.folder))
    other = load_recipe(
        recipe_path, ["pretrain.workers=2", "pretrain.micro_batch_rows=1", "pretrain.checkpoint_every=9"]
    )
    assert run_stage(STAGE, count, other, RunFolder(recipe.folder)) == "skipped"


def test_a_longer_reward_timeout_does_not_change_the_configuration(recipe_path: Path) -> None:
    checked = "rlhf.rewards=[{kind: function, function: 'a:b', timeout_seconds: %d}]"
    soon, late = (load_recipe(recipe_path, [checked % seconds]) for seconds in (60, 600))
    other = load_recipe(recipe_path, ["rlhf.rewards=[{kind: function, function: 'a:c'}]"])
    configs = [stage_config(stage_named("rlhf"), recipe) for recipe in (soon, late, other)]
    assert configs[0] == configs[1] != configs[2]


@pytest.mark.usefixtures("counter")
def test_a_killed_stage_resumes_where_it_was(recipe_path: Path) -> None:
    assert run_in_child(recipe_path, 100, kill_at_step="2") == -signal.SIGKILL
    recipe = load_recipe(recipe_path)
    run = RunFolder(recipe.folder)
    assert stage_state(STAGE, recipe, run).name == "partial"
    assert run_stage(STAGE, count, recipe, run) == "resumed"
    assert [(run.path("count") / f"step-{step}").read_text() for step in range(4)] == ["0", "0", "2", "2"]


@pytest.mark.slow
@pytest.mark.usefixtures("counter")
def test_a_kill_at_any_rename_of_a_commit_loses_nothing(recipe_path: Path) -> None:
    """A new artifact replaces an old one. Whichever rename is cut short, the same command completes the new one."""
    kills = 0
    for renames in range(10):
        assert run_in_child(recipe_path, 100) == 0
        code = run_in_child(recipe_path, renames, "pretrain.epochs=2")
        kills += code == -signal.SIGKILL
        recipe = load_recipe(recipe_path, ["pretrain.epochs=2"])
        run = RunFolder(recipe.folder)
        run_stage(STAGE, count, recipe, run)
        assert run.require("count").config["pretrain"]["epochs"] == 2
        assert len(list(run.path("count").glob("step-*"))) == 4
        assert not (run.root / ".partial" / "count").exists()
        if code == 0:
            break
    assert kills >= 3
    assert code == 0


def test_an_absent_input_names_the_command_that_makes_it(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    with pytest.raises(UserError, match="triptych pretrain RECIPE"):
        run_stage(stage_named("sft"), count, recipe, RunFolder(recipe.folder))
    assert not recipe.folder.exists()


def test_a_file_that_changes_changes_the_configuration(recipe_path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    before = stage_config(stage_named("corpus"), recipe)
    (tmp_path / "text.txt").write_text("other text")
    assert stage_config(stage_named("corpus"), recipe) != before
    (tmp_path / "text.txt").unlink()
    (tmp_path / "texts.txt").touch()
    with pytest.raises(UserError, match=rf"no file matches .*text\.txt: the folder {tmp_path} has texts\.txt, "):
        check_sources(recipe)


def test_large_files_are_identified_by_size_and_time_without_reading(recipe_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    with file.open("wb") as content:
        content.truncate(300 << 20)  # of zeros, which take no room
    recipe = load_recipe(recipe_path)
    before = stage_config(stage_named("corpus"), recipe)
    assert stage_config(stage_named("corpus"), recipe) == before
    os.utime(file, ns=(1, 1))
    assert stage_config(stage_named("corpus"), recipe) != before


def test_previous_corpora_and_decontamination_files_are_hashed(recipe_path: Path, tmp_path: Path) -> None:
    known, asked = tmp_path / "before" / "corpus", tmp_path / "asked.json"
    recipe = load_recipe(
        recipe_path, [f"corpus.previous_corpora=[{known}]", f"corpus.decontaminate={{files: [{asked}]}}"]
    )
    known.mkdir(parents=True)
    for file in (known / "manifest.json", asked):
        with pytest.raises(UserError, match=f"no file matches {file}"):
            check_sources(recipe)
        file.write_text("[]")
    check_sources(recipe)
    before = stage_config(stage_named("corpus"), recipe)["files"]
    assert list(before) == [str(tmp_path / "text.txt"), str(known / "manifest.json"), str(asked)]
    for file in (known / "manifest.json", asked):
        file.write_text("[1]")
        changed = stage_config(stage_named("corpus"), recipe)["files"]
        assert [path for path in changed if changed[path] != before[path]] == [str(file)]
        before = changed
