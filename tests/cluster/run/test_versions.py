"""The versions of a served model: kept ones, the live one, and that a new run of the stage does not remove it."""

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.folder import Manifest, RunFolder
from cluster.run.server_client import NotServedError, application_of, ask_server, served_at, write_server
from cluster.run.versions import KEPT, Versions, differing_files, live_version
from tests.helpers import triptych_here


def make(run: RunFolder, weights: str, config: str = "{}") -> None:
    """Commits a stage's folder as if the stage had run."""
    out = run.begin("policy", weights)
    (out / "model.safetensors").write_text(f"tensors of {weights}")
    (out / "config.json").write_text(config)
    run.commit("policy", Manifest("rlhf", weights, {}, {}, "1", 1.0, {}, weights))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def versions(run: RunFolder) -> Versions:
    return Versions(run, "policy")


def held(versions: Versions) -> str:
    return (versions.live().folder / "model.safetensors").read_text()


def test_a_server_starts_with_the_newest_weights_unless_they_were_rolled_back(
    run: RunFolder, versions: Versions
) -> None:
    with pytest.raises(UserError, match="triptych rlhf RECIPE"):
        versions.start()
    make(run, "aaa")
    assert versions.start().weights == "aaa"
    make(run, "bbb")
    assert (versions.live().weights, held(versions)) == ("aaa", "tensors of aaa")
    assert versions.start().weights == "bbb"
    assert versions.before_live().weights == "aaa"
    versions.make_live("aaa", again=True)
    assert versions.start().weights == "aaa"
    assert held(versions) == "tensors of aaa"
    assert versions.kept() == ["aaa", "bbb"]
    with pytest.raises(UserError, match="no version of policy before aaa"):
        versions.before_live()
    # Promoted again, it is the newest version, and the one that was live is the one before it.
    versions.make_live("bbb")
    assert versions.before_live().weights == "aaa"
    assert live_version(versions.folder) == versions.live()


def test_files_are_hard_links_and_only_the_last_versions_are_kept(run: RunFolder, versions: Versions) -> None:
    for number in range(KEPT + 3):
        make(run, f"v{number}")
        versions.start()
        inodes = {
            (folder / "model.safetensors").stat().st_ino for folder in (run.path("policy"), versions.live().folder)
        }
        assert len(inodes) == 1
    assert versions.kept() == [f"v{number}" for number in range(3, KEPT + 3)]
    assert {path.name for path in versions.folder.iterdir()} == {*versions.kept(), "versions.json"}
    assert versions.find("v4").weights == "v4"
    for name in ("v0", "v", "../policy"):
        with pytest.raises(UserError, match="versions of policy; kept are"):
            versions.find(name)


def test_a_model_of_an_unfinished_stage_can_be_a_version(run: RunFolder, versions: Versions) -> None:
    make(run, "aaa")
    versions.start()

    def write(text: str) -> Callable[[Path], None]:
        return lambda folder: (folder / "model.safetensors").write_text(text) and None

    first = versions.keep(write("first"))
    assert versions.find(first.weights[:8]) == first
    assert (versions.keep(write("first")), versions.live().weights) == (first, "aaa")
    versions.make_live(first.weights)
    # A server that is started again serves it, until the stage has finished another model.
    assert versions.start() == first
    second = versions.keep(write("second"))
    versions.drop(first)
    versions.drop(second)
    assert (first.folder.exists(), second.folder.exists()) == (True, False)
    make(run, "bbb")
    assert versions.start().weights == "bbb"
    assert versions.kept() == ["aaa", first.weights, "bbb"]
    assert not list(versions.folder.glob(".*"))


def test_files_that_make_another_model_are_listed(run: RunFolder, versions: Versions) -> None:
    make(run, "aaa")
    first = versions.start()
    make(run, "bbb", config='{"hidden_size": 8}')
    assert differing_files(first.folder, versions.keep_latest().folder) == ["config.json"]


def test_a_damaged_versions_file_is_named(run: RunFolder, versions: Versions) -> None:
    make(run, "aaa")
    versions.start()
    for broken in ("{", "[]", '{"kept": ["aaa"], "live": "bbb"}'):
        (versions.folder / "versions.json").write_text(broken)
        with pytest.raises(UserError, match="is damaged"):
            versions.live()


class FixedReply(BaseHTTPRequestHandler):
    """A server that sends a fixed reply."""

    reply = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.reply)


@pytest.mark.parametrize("reply", [b'{"policy": {}}', b"[]", b"<html>"])
def test_requests_ignore_proxies_and_need_a_json_reply(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr(FixedReply, "reply", reply)
    with HTTPServer(("127.0.0.1", 0), FixedReply) as server:
        write_server(run, f"http://127.0.0.1:{server.server_port}", "token")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        if reply.startswith(b"{"):
            assert ask_server(run.root, "replicas") == {"policy": {}}
        else:
            with pytest.raises(NotServedError, match="no server answers at"):
                ask_server(run.root, "replicas")
        thread.join()


def test_a_copied_run_is_not_the_one_that_is_served(run: RunFolder, tmp_path: Path) -> None:
    """Otherwise commands on the copy would change the models that the server of the original serves."""
    run.create()
    write_server(run, "http://127.0.0.1:9", "token", application="one")
    copied = shutil.copytree(run.root, tmp_path.parent / f"{tmp_path.name}-copy")
    assert (served_at(copied), application_of(copied)) == (None, None)
    assert (served_at(run.root), application_of(run.root)) == ("http://127.0.0.1:9", "one")
    with pytest.raises(NotServedError, match=f"server.json is that of {run.root}, from which it was copied"):
        ask_server(copied, "replicas")


def test_commands_need_a_server_and_its_address_is_private(run: RunFolder) -> None:
    away = triptych_here("promote", str(run.root), "policy", cwd=run.root)
    assert (away.returncode, away.stderr.count("\n")) == (2, 1)
    assert "is not being served" in away.stderr
    path = write_server(run, "http://127.0.0.1:9", "token")
    assert json.loads(path.read_text()) == {"url": "http://127.0.0.1:9", "token": "token", "run": str(run.root)}
    assert path.stat().st_mode & 0o777 == 0o600
    gone = triptych_here("rollback", str(run.root), "policy", cwd=run.root)
    assert gone.returncode == 2
    assert "no server answers at http://127.0.0.1:9" in gone.stderr
    assert "token" not in gone.stderr
