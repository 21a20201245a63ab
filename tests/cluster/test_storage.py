"""Files by path, by glob and by URI: a file system in memory stands for one across the network."""

from pathlib import Path

import fsspec
import pytest

from cluster.failures import UserError
from cluster.storage import absolute, find_files, folder_of, is_remote, local_file, look_up, open_file, place_in


@pytest.fixture
def remote() -> str:
    system = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "notes.md"):
        system.pipe(f"/triptych-texts/{name}", f"content of {name}".encode())
    return "memory://triptych-texts"


def test_folders_globs_and_files_across_the_network(remote: str) -> None:
    names = [file.name for file in find_files(remote)]
    assert names == [f"{remote}/{name}" for name in ("a.jsonl", "b.jsonl", "deep/er/c.jsonl", "notes.md")]
    assert [file.name for file in find_files(f"{remote}/*.jsonl")] == names[:2]
    assert [file.name for file in find_files(f"{remote}/**/*.jsonl")] == names[:3]
    (one,) = find_files(f"{remote}/b.jsonl")
    assert one == look_up(one.name)
    assert one.size == len("content of b.jsonl")
    with open_file(one.name) as file:
        file.seek(8)
        assert file.read() == b"of b.jsonl"
    with local_file(one.name) as path:
        assert path.read_text() == "content of b.jsonl"
    assert not path.exists()
    assert find_files(f"{remote}/*.txt") == []
    with pytest.raises(FileNotFoundError, match="absent"):
        look_up(f"{remote}/absent")


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "with space.txt").write_text("x")
    uri = (tmp_path / "with space.txt").as_uri()
    assert "%20" in uri
    assert not is_remote(uri)
    assert find_files(uri) == find_files(str(tmp_path / "with space.txt")) == [look_up(absolute(uri))]
    assert [file.name for file in find_files(f"{tmp_path.as_uri()}/*.txt")] == [str(tmp_path / "with space.txt")]


def test_names_are_seen_from_the_folder_of_the_pattern() -> None:
    for pattern, name, place in (
        ("/data/texts", "/data/texts/a/b.txt", "a/b.txt"),
        ("/data/te*/b?.txt", "/data/texts/b1.txt", "texts/b1.txt"),
        ("/data/b.txt", "/data/b.txt", "b.txt"),
        ("s3://bucket/texts/*.txt?region=x", "s3://bucket/texts/b.txt?region=x", "b.txt"),
        ("s3://bucket/texts/b.txt?region=x", "s3://bucket/texts/b.txt?region=x", "b.txt"),
    ):
        assert place_in(folder_of(pattern), name) == place


def test_a_scheme_that_nothing_opens_is_said() -> None:
    with pytest.raises(UserError, match="cannot open strange://a/b"):
        find_files("strange://a/b")
