"""The files that travel with a job beside the project's code."""

import shutil
from pathlib import Path

import pytest

from cluster.recipe.loading import load_recipe
from cluster.runtime import shipping
from cluster.runtime.jobs import resolved
from cluster.runtime.shipping import modules_of, receive_files, stage_files, stage_modules

REWARD = "rlhf.rewards=[{kind: function, function: 'own_rewards.brief:score'}]"
OVERRIDES = [
    REWARD,
    "collect.annotator={function: 'own_annotator:rank'}",
    "evaluate.text=[{kind: files, path: 'https://host/read.txt'}]",
    "sft.sources=[{kind: files, path: chats/*.jsonl}]",
]


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_path: Path) -> Path:
    """Makes a folder with a recipe, modules of one's own and small files, and enters it."""
    for name, text in {
        "own_rewards/__init__.py": "",
        "own_rewards/brief.py": "import json\nimport numpy\nfrom own_words import LONG\nfrom . import data",
        "own_rewards/data/words.txt": "words",
        "own_rewards/__pycache__/brief.pyc": "",
        "own_words.py": "def unfinished(:",
        "own_annotator.py": "import cluster.errors",
        "chats/a.jsonl": "{}",
        "chats/b.jsonl": "{}",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_modules_that_a_recipe_names_travel_with_what_they_import(laptop: Path, recipe_path: Path) -> None:
    modules = modules_of(load_recipe(recipe_path, OVERRIDES))
    assert [path.relative_to(laptop) for path in modules] == [
        Path("own_annotator.py"),
        Path("own_rewards"),
        Path("own_words.py"),
    ]
    job = laptop / "job"
    job.mkdir()
    assert stage_modules(modules, job) == []
    found = sorted(str(file.relative_to(job)) for file in job.rglob("*") if file.is_file())
    assert found == [
        "own_annotator.py",
        "own_rewards/__init__.py",
        "own_rewards/brief.py",
        "own_rewards/data/words.txt",
        "own_words.py",
    ]


def test_a_module_too_large_to_travel_is_named(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "MODULE_BYTES", 20)
    (laptop / "job").mkdir()
    notes = stage_modules([laptop / "own_rewards", laptop / "own_words.py"], laptop / "job")
    assert len(notes) == 1
    assert "own_rewards has 0 MB and does not travel: install it on the cluster's nodes" in notes[0]
    assert [path.name for path in (laptop / "job").iterdir()] == ["own_words.py"]


def test_small_files_are_copied_to_where_the_cluster_finds_them(laptop: Path, recipe_path: Path) -> None:
    job = laptop / "job"
    job.mkdir()
    overrides = [*OVERRIDES, "corpus.decontaminate={files: [gone.json]}"]
    placed = resolved(load_recipe(recipe_path, overrides))
    assert stage_files(placed, job) == [
        f"{laptop / 'gone.json'} is not on this machine: the job looks for it on the cluster, under the same path"
    ]
    (job / "recipe.yaml").write_text(shipping.dump_recipe(placed))
    # The cluster has one of the files under its own path, and not the others.
    shutil.rmtree(laptop / "chats")
    receive_files(job)
    received = load_recipe(job / "recipe.yaml")
    assert received.corpus == placed.corpus
    assert received.evaluate.text[0].path == "https://host/read.txt"
    path = Path(str(received.sft.sources[0].path))
    assert path.is_relative_to(laptop / "run" / "inputs")
    assert sorted(file.name for file in path.parent.glob(path.name)) == ["a.jsonl", "b.jsonl"]
    # The same job again names the same files, and other contents get another name.
    receive_files(job)
    assert load_recipe(job / "recipe.yaml") == received
    (job / "recipe.yaml").write_text(shipping.dump_recipe(placed))
    (laptop / "text.txt").write_text("other text on the cluster")
    receive_files(job)
    source = Path(str(load_recipe(job / "recipe.yaml").corpus.sources[0].path))
    assert source.name == "text.txt"
    assert source.read_text() == "some text"


def test_a_file_too_large_to_travel_is_named(laptop: Path, recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "FILE_BYTES", 5)
    (laptop / "job").mkdir()
    (note,) = stage_files(resolved(load_recipe(recipe_path, ["sft.sources=[{path: chats/*.jsonl}]"])), laptop / "job")
    assert note.startswith(f"{laptop / 'text.txt'} has 0 MB and does not travel: the job looks for it on the cluster")
