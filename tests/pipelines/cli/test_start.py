"""`triptych init`: recipes for one's own data, which pass the checks of a run, and are not written otherwise."""

import json
from pathlib import Path

import pytest

from cluster.recipe.loading import load_recipe
from tests.helpers import triptych, triptych_here

REWARD = """
def brief(question, answer):
    return float(len(answer) < 20)


def of_one(question):
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("Spelt is an old kind of wheat.\n" * 20)
    rows = [{"prompt": f"What is {number}?", "response": "A number."} for number in range(40)]
    # One row is broken, and is no prompt.
    lines = [*map(json.dumps, rows), '{"prompt": broken']
    (tmp_path / "chats.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "scoring.py").write_text(REWARD)
    return tmp_path


@pytest.mark.slow
def test_a_recipe_for_ones_own_data_passes_the_plan(folder: Path) -> None:
    words = ["init", "my-run", "--text", "texts", "--chats", "chats.jsonl", "--reward", "code/scoring.py:brief"]
    done = triptych(*words, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"PYTHONPATH={folder / 'code'} triptych run my-run.yaml --plan" in done.stdout
    assert "30 of 40 prompts" in done.stdout
    recipe = load_recipe(folder / "my-run.yaml")
    assert (recipe.name, recipe.collect.prompts, recipe.rlhf.rewards[0].function) == ("my-run", 30, "scoring:brief")
    assert not recipe.rlhf.needs_reward_model
    planned = triptych("run", "my-run.yaml", "--plan", f"run={folder / 'run'}", cwd=folder)
    # Python's path is not set as the command says.
    assert planned.returncode == 2
    assert "scoring:brief: Python finds no module scoring" in planned.stderr
    before = (folder / "my-run.yaml").read_bytes()
    assert "my-run.yaml exists" in triptych_here(*words, cwd=folder).stderr
    assert (folder / "my-run.yaml").read_bytes() == before
    # Without a reward, people rank.
    assert triptych_here("init", "ranked", "--text", "texts", "--chats", "chats.jsonl", cwd=folder).returncode == 0
    ranked = load_recipe(folder / "ranked.yaml")
    assert (ranked.collect.annotator, ranked.collect.min_rankings, ranked.collect.prompts) == ("people", 15, 30)
    assert triptych_here("run", "ranked.yaml", "--plan", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--chats", "chats.jsonl"], "--text and --start-from are missing"),
        (["x", "--text", "texts"], "Missing option '--chats'"),
        (["a/b", "--text", "texts", "--chats", "chats.jsonl"], "'a/b' is no run's name"),
        (["x", "--text", "text", "--chats", "chats.jsonl"], "no file matches text: the folder"),
        (["x", "--text", "texts", "--chats", "texts/one.txt"], "in no format that rows are read from"),
        (["x", "--text", "texts", "--chats", "chats.jsonl", "--reward", "scoring.py"], "write FILE.py:FUNCTION"),
        (["x", "--text", "texts", "--chats", "chats.jsonl", "--reward", "gone.py:f"], "there is no file gone.py"),
        (["x", "--text", "texts", "--chats", "chats.jsonl", "--reward", "code/scoring.py:of_one"], "cannot be called"),
        (["x", "--text", "texts", "--chats", "chats.jsonl", "--reward", "code/scoring.py:bref"], "name is brief"),
    ],
)
def test_what_would_not_run_is_said_in_one_line_and_not_written(folder: Path, words: list[str], message: str) -> None:
    done = triptych_here("init", *words, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(folder.glob("x.yaml*"))
