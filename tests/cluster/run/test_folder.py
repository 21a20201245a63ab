import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.atomic import atomic_write, write_json
from cluster.run.folder import RunFolder, fingerprint
from cluster.run.lock import JOB, JOB_SERVER, Holder
from cluster.run.metrics import MetricsWriter, read_metrics

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from cluster.run.atomic import write_json
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_json(Path(sys.argv[1]), {"new": "x" * 100_000})
"""

HOLDER = """
import sys, time
from cluster.run.folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    child = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], timeout=30, check=False)
    assert child.returncode == -signal.SIGKILL
    assert path.read_text() == '{\n  "old": 1\n}'


def test_an_error_in_a_write_leaves_the_old_file_and_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})

    def fail() -> None:
        with atomic_write(path) as aside:
            aside.write_text("half")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 (only the error of the block itself can be raised)
        fail()
    assert path.read_text() == '{\n  "old": 1\n}'
    with atomic_write(tmp_path / "new" / "folder") as aside:
        (aside / "deep").mkdir(parents=True)
        (aside / "deep" / "file").write_text("whole")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "deep" / "file").read_text() == "whole"
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["folder"]


def test_one_process_at_a_time_holds_the_lock_and_its_end_releases_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    assert run.holder() == Holder(holder.pid, socket.gethostname())
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"), run.lock():
        pass
    holder.kill()
    holder.wait(10)
    assert run.holder() is None
    with run.lock():
        assert run.holder() == Holder.here()


def test_one_server_at_a_time_while_stages_are_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.serving(), run.lock():
        assert run.holder() == Holder.here()
        with pytest.raises(UserError, match=f"being served by process {os.getpid()}"), run.serving():
            pass
    with run.serving():
        assert run.holder() is None


def test_a_file_in_place_of_the_run_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        RunFolder(tmp_path / "file" / "run").check_writable()


@pytest.mark.parametrize("place", ["/proc/run", "/" + 300 * "x"])
def test_a_run_folder_that_the_system_refuses_is_named(place: str) -> None:
    with pytest.raises(UserError, match=f"run folder {place}|{place} as the run folder"), RunFolder(place).lock():
        pass


WHOLE = {"stage": "sft", "fingerprint": "f", "config": {}, "inputs": {}, "version": "1", "seconds": 1.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"stage": "s', "Invalid JSON"),
        ("[]", "Input should be"),
        ("{}", "stage: Field required"),
        (json.dumps(WHOLE | {"seconds": "abc"}), "seconds: Input should be a valid number"),
        (json.dumps(WHOLE | {"inputs": [1]}), "inputs: Input should be an object"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=rf"manifest\.json is damaged \({reason}.*to build it again"):
        RunFolder(tmp_path).manifest("sft")


def test_a_manifest_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "sft" / "manifest.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(Is a directory"):
        RunFolder(tmp_path).manifest("sft")


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_metrics_of_repeated_steps_are_removed_and_cut_lines_left_out(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(4):
        writer.write(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    MetricsWriter(tmp_path, resume_at=2).write(2, loss=9.0)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0.0, 1.0, 9.0]


def test_a_run_in_use_by_a_job_names_host_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    monkeypatch.setenv(JOB, "triptych-7")
    monkeypatch.setenv(JOB_SERVER, "http://head:8265")
    where = f"job triptych-7 on host {socket.gethostname()}: `triptych attach triptych-7 --address http://head:8265`"
    with run.lock(), pytest.raises(UserError, match=re.escape(where)), run.lock():
        pass
    assert str(Holder(7, "elsewhere")) == "process 7 of host elsewhere"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no locks .*Lustre with `-o flock`"), run.lock():
        pass
    with pytest.raises(UserError, match="has no locks"):
        run.holder()
