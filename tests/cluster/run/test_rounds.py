"""Rounds are kept, numbered and immutable, and can be brought back, whatever a kill cuts short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.folder import Manifest, RunFolder
from cluster.run.rounds import kept_rounds, present_round, restore_round, round_folder, round_in_the_making
from tests.helpers import ROOT

# A process without threads that forks a child for each number of calls, after which the child is killed.
KILLER = """
import os, signal, sys
from pathlib import Path
from tests.cluster.run import test_rounds
def counted(real, left=[0]):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
left = counted.__defaults__[0]
for calls in range(1000):
    root = Path(sys.argv[1]) / str(calls)
    test_rounds.prepare(root, sys.argv[2])
    if (child := os.fork()) == 0:
        left[0] = calls
        for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        getattr(test_rounds, sys.argv[2])(root)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""
CHAIN = {"preferences": "collect", "reward": "reward", "policy": "rlhf", "report": "evaluate"}


def make(run: RunFolder, folder: str, said: str, *made_from: str) -> None:
    """Makes a stage's folder as if the stage had run."""
    out = run.begin(folder, f"{folder} {said}")
    (out / "content").write_text(said)
    inputs = {name: run.require(name).fingerprint for name in made_from}
    run.commit(folder, Manifest(CHAIN[folder], f"{folder} {said}", {}, inputs, "1", 1.0))


def make_round(root: Path, said: str) -> None:
    run = RunFolder(root)
    make(run, "preferences", said)
    make(run, "reward", said, "preferences")
    make(run, "policy", said, "reward")
    make(run, "report", said, "reward", "policy")


def prepare(root: Path, action: str) -> None:
    """Makes the run that an action is tried on."""
    make_round(root, "one")
    if action == "bring_back_the_first":
        second_round(root)


def second_round(root: Path) -> None:
    """Makes the second round as the command does: completes what a kill cut short, and does the rest."""
    run = RunFolder(root)
    for folder in CHAIN:
        run.recover(folder)
    for folder, made_from in {"preferences": (), "reward": ("preferences",), "policy": ("reward",)}.items():
        found = run.manifest(folder)
        if found is None or found.fingerprint != f"{folder} two":
            make(run, folder, "two", *made_from)


def bring_back_the_first(root: Path) -> None:
    with RunFolder(root).lock():
        restore_round(root, 1)


def content(root: Path) -> dict[str, str]:
    return {name: (root / name / "content").read_text() for name in CHAIN if (root / name).exists()}


def numbers(root: Path) -> dict[str, tuple[int | None, int | None]]:
    run = RunFolder(root)
    return {name: (run.require(name).round, run.require(name).round_before) for name in CHAIN if run.manifest(name)}


def whole(said: str) -> dict[str, str]:
    return dict.fromkeys(CHAIN, said)


def test_a_round_is_kept_before_the_first_of_its_stages_is_replaced(tmp_path: Path) -> None:
    make_round(tmp_path, "one")
    assert kept_rounds(tmp_path) == []
    assert numbers(tmp_path) == dict.fromkeys(CHAIN, (1, None))
    assert round_in_the_making(tmp_path, "preferences") == 2
    make_round(tmp_path, "two")
    assert kept_rounds(tmp_path) == [1]
    assert content(round_folder(tmp_path, 1)) == whole("one")
    assert content(tmp_path) == whole("two")
    assert numbers(tmp_path) == dict.fromkeys(CHAIN, (2, 1))
    assert present_round(tmp_path) == 2
    # Another reward model on the same preferences is a round too.
    run = RunFolder(tmp_path)
    make(run, "reward", "three", "preferences")
    make(run, "policy", "three", "reward")
    assert content(round_folder(tmp_path, 2)) == whole("two")
    assert numbers(tmp_path)["preferences"] == (2, 1)
    assert numbers(tmp_path)["policy"] == (3, 2)
    # The files of a kept round are the same on the disk, not copies.
    kept, now = round_folder(tmp_path, 2) / "preferences" / "content", tmp_path / "preferences" / "content"
    assert kept.stat().st_ino == now.stat().st_ino


def test_a_run_from_before_there_were_rounds_is_in_its_first(tmp_path: Path) -> None:
    make_round(tmp_path, "one")
    for folder in CHAIN:
        path = tmp_path / folder / "manifest.json"
        old = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("round")}
        path.write_text(json.dumps(old))
    assert present_round(tmp_path) == 1
    assert numbers(tmp_path) == dict.fromkeys(CHAIN, (None, None))
    second_round(tmp_path)
    assert content(round_folder(tmp_path, 1)) == whole("one")
    # The report of the first round is stale until it is made again.
    assert content(tmp_path) == {**whole("two"), "report": "one"}
    make(RunFolder(tmp_path), "report", "two", "reward", "policy")
    assert kept_rounds(tmp_path) == [1]
    assert present_round(tmp_path) == 2


def test_a_round_is_brought_back_and_the_next_one_gets_a_number_of_its_own(tmp_path: Path) -> None:
    make_round(tmp_path, "one")
    second_round(tmp_path)
    with pytest.raises(UserError, match="keeps no round 7; kept are 1"):
        restore_round(tmp_path, 7)
    bring_back_the_first(tmp_path)
    assert content(tmp_path) == whole("one")
    assert kept_rounds(tmp_path) == [1, 2]
    assert "report" not in content(round_folder(tmp_path, 2)), "what was stale was no part of the second round"
    assert present_round(tmp_path) == 1
    make_round(tmp_path, "three")
    assert kept_rounds(tmp_path) == [1, 2]
    assert numbers(tmp_path) == dict.fromkeys(CHAIN, (3, 1))
    with RunFolder(tmp_path).lock():
        restore_round(tmp_path, 2)
    assert "report" not in content(tmp_path)
    assert content(round_folder(tmp_path, 3)) == whole("three")


@pytest.mark.slow
@pytest.mark.parametrize("action", ["second_round", "bring_back_the_first"])
def test_a_kill_at_any_moment_loses_no_round(tmp_path: Path, action: str) -> None:
    command = [sys.executable, "-c", KILLER, str(tmp_path), action]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, timeout=120, check=True)
    roots = sorted(tmp_path.iterdir(), key=lambda root: int(root.name))
    assert len(roots) > 20
    for root in roots:
        # Wherever the kill came, each kept folder is whole, and so is the first round, present or kept.
        assert all((folder / "content").exists() for folder in root.glob("rounds/[0-9]*/*"))
        kept = [content(round_folder(root, number)) for number in kept_rounds(root)]
        assert whole("one") in [*kept, content(root)]
        {"second_round": second_round, "bring_back_the_first": bring_back_the_first}[action](root)
        assert content(round_folder(root, 1)) == whole("one")
        assert content(root)["policy"] == {"second_round": "two", "bring_back_the_first": "one"}[action]
        assert kept_rounds(root) == ([1] if action == "second_round" else [1, 2])
        # Replaced folders may stay there until their stage is replaced again.
        assert {left.suffix for left in (root / ".partial").iterdir()} <= {".old"}
