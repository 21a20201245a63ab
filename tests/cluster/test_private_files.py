"""Files with people's words or keys in them: only their owner reads them, also those that were there before."""

import stat
from pathlib import Path

import pytest

from cluster.feedback import open_feedback
from cluster.keys import KeyRing
from cluster.run.folder import RunFolder
from cluster.run.server_client import write_server
from serve.http.middleware import LOG_BYTES, access_log


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_feedback_database_and_its_journal(tmp_path: Path, earlier: bool) -> None:
    path = tmp_path / "feedback.db"
    if earlier:
        open_feedback(f"sqlite:///{path}").close()
        path.chmod(0o644)
    with open_feedback(f"sqlite:///{path}") as feedback:
        feedback.add_annotator("ann")
        assert {mode(file) for file in tmp_path.glob("feedback.db*")} == {0o600}


def test_keys_and_who_made_them(tmp_path: Path) -> None:
    KeyRing(tmp_path).add("ann", ["chat"], None, None, "a test")
    (tmp_path / "keys.json").chmod(0o644)
    (tmp_path / "audit.jsonl").chmod(0o644)
    KeyRing(tmp_path).revoke("ann", "a test")
    assert mode(tmp_path / "keys.json") == mode(tmp_path / "audit.jsonl") == 0o600


def test_a_new_run_folder_and_one_that_others_may_enter(tmp_path: Path) -> None:
    new, shared = RunFolder(tmp_path / "runs" / "new"), RunFolder(tmp_path / "shared")
    shared.root.mkdir(mode=0o755)
    for run in (new, shared):
        run.begin("sft", "digest")
        with run.lock():
            write_server(run, "http://127.0.0.1:1", "token")
    assert [mode(run.root) for run in (new, shared)] == [0o700, 0o755]
    with RunFolder(tmp_path / "locked").lock():
        assert mode(tmp_path / "locked") == 0o700


def test_the_access_log_also_after_a_rotation(tmp_path: Path) -> None:
    log = access_log(tmp_path / "access.jsonl")
    for line in ("a" * LOG_BYTES, "b", "c"):
        log.info(line)
    files = sorted(tmp_path.glob("access.jsonl*"))
    assert len(files) > 1
    assert {mode(file) for file in files} == {0o600}
