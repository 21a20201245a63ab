"""Files by path, glob and URI; a file system in memory stands for a remote one."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.errors import UserError
from cluster.run.atomic import atomic_write, write_text
from cluster.run.storage.files import (
    file_info,
    find_files,
    glob_root,
    local_file,
    open_file,
    relative_name,
    require_writable,
)
from cluster.run.storage.remote import absolute, is_remote
from tests.helpers import ROOT


@pytest.fixture
def remote() -> str:
    system = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "notes.md"):
        system.pipe(f"/triptych-texts/{name}", f"content of {name}".encode())
    return "memory://triptych-texts"


def test_remote_folders_globs_and_files_are_found(remote: str) -> None:
    names = [file.name for file in find_files(remote)]
    assert names == [f"{remote}/{name}" for name in ("a.jsonl", "b.jsonl", "deep/er/c.jsonl", "notes.md")]
    assert [file.name for file in find_files(f"{remote}/*.jsonl")] == names[:2]
    assert [file.name for file in find_files(f"{remote}/**/*.jsonl")] == names[:3]
    (one,) = find_files(f"{remote}/b.jsonl")
    assert one == file_info(one.name)
    assert one.size == len("content of b.jsonl")
    with open_file(one.name) as file:
        file.seek(8)
        assert file.read() == b"of b.jsonl"
    with local_file(one.name) as path:
        assert path.read_text() == "content of b.jsonl"
    assert not path.exists()
    assert find_files(f"{remote}/*.txt") == []
    with pytest.raises(FileNotFoundError, match="absent"):
        file_info(f"{remote}/absent")


def test_a_path_comes_before_a_pattern_and_links_lead_to_each_file_once(tmp_path: Path) -> None:
    for name in ("gl[ob].txt", "globo.txt", "in/a.txt", "in/deep/b.txt", "in/.hidden/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "in" / "deep" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "deep" / "again").symlink_to(tmp_path / "in")

    def found(pattern: str) -> list[str]:
        return [file.name.removeprefix(f"{tmp_path}/") for file in find_files(str(tmp_path / pattern))]

    assert found("gl[ob].txt") == ["gl[ob].txt"]
    assert found("glob[o].txt") == ["globo.txt"]
    assert found("in/**/*.txt") == ["in/a.txt", "in/deep/b.txt"]
    assert found("**/*.txt") == ["gl[ob].txt", "globo.txt", "in/a.txt", "in/deep/b.txt"]


def test_a_file_that_cannot_be_written_is_told_before_and_when_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    require_writable(tmp_path / "new" / "out", parents=True)
    for path, parents, message in (
        (tmp_path / "new" / "out", False, "there is no folder"),
        (tmp_path / "file" / "out", True, "file is not a folder"),
        (tmp_path / "pipe", False, "it is a device or a pipe"),
        (tmp_path, False, "it is a folder"),
    ):
        with pytest.raises(UserError, match=f"^cannot write {path}: .*{message}"):
            require_writable(path, parents)
    for path in (tmp_path / "file" / "out", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(UserError, match=rf"^cannot write {path}: [A-Z]"):
            write_text(path, "")
    # A file that the block reads is another matter.
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out"):
        (tmp_path / "gone").read_text()


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "with space.txt").write_text("x")
    uri = (tmp_path / "with space.txt").as_uri()
    assert "%20" in uri
    assert not is_remote(uri)
    assert find_files(uri) == find_files(str(tmp_path / "with space.txt")) == [file_info(absolute(uri))]
    assert [file.name for file in find_files(f"{tmp_path.as_uri()}/*.txt")] == [str(tmp_path / "with space.txt")]


def test_only_local_names_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("texts/*.txt") == str(tmp_path / "texts" / "*.txt")
    assert absolute("s3://bucket/texts/*.txt?region=x") == "s3://bucket/texts/*.txt?region=x"


def test_names_are_relative_to_the_root_of_the_glob() -> None:
    for pattern, name, place in (
        ("/data/texts", "/data/texts/a/b.txt", "a/b.txt"),
        ("/data/te*/b?.txt", "/data/texts/b1.txt", "texts/b1.txt"),
        ("/data/b.txt", "/data/b.txt", "b.txt"),
        ("s3://bucket/texts/*.txt?region=x", "s3://bucket/texts/b.txt?region=x", "b.txt"),
        ("s3://bucket/texts/b.txt?region=x", "s3://bucket/texts/b.txt?region=x", "b.txt"),
    ):
        assert relative_name(glob_root(pattern), name) == place


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match="cannot open strange://a/b"):
        find_files("strange://a/b")


HUB_FILES = {"README.md": b"# A dataset", "data/test.jsonl": b"second\n", "data/train.jsonl": b"first\n" * 50}


class Hub(BaseHTTPRequestHandler):
    """The requests of the Hub's own client: the repository, the files in a folder, and bytes of a file."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if tree := re.fullmatch(r"/api/datasets/o/n/tree/main(?:/(.+))?", path):
            self._answer(self._tree(f"{tree[1]}/" if tree[1] else "", "recursive=true" in query.lower()))
        elif file := re.fullmatch(r"/datasets/o/n/resolve/main/(.+)", path):
            start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self._send(206, HUB_FILES[file[1]][start : stop + 1])
        elif path.startswith("/api/datasets/o/n"):
            self._answer({"id": "o/n", "sha": "a" * 40})
        else:
            self._send(404, b"")

    def _tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        found = {}
        for name, data in HUB_FILES.items():
            if name.startswith(folder):
                child = name if recursive else folder + name.removeprefix(folder).split("/")[0]
                kind = "file" if child == name else "directory"
                found[child] = {"type": kind, "oid": "b" * 40, "size": len(data), "path": child}
        return list(found.values())

    def _answer(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_hub_dataset_is_read_by_the_hubs_own_client(hub: str) -> None:
    """In a process of its own: the client reads the Hub's address once, when it is imported."""
    program = """
from cluster.run.storage.files import find_files, open_file
print([(file.name, file.size) for file in find_files("hf://datasets/o/n")])
print([file.name for file in find_files("hf://datasets/o/n@main/data/tr*")])
with open_file("hf://datasets/o/n/data/train.jsonl") as file:
    file.seek(6)
    print(file.readline())
"""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines() == [
        str([(f"hf://datasets/o/n/{name}", len(data)) for name, data in HUB_FILES.items()]),
        str(["hf://datasets/o/n@main/data/train.jsonl"]),
        str(b"first\n"),
    ], done.stderr
