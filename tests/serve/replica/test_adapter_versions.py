"""The versions of an adapter: kept by its files, and live until they or the recipe's folder change."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.folder import RunFolder
from serve.replica.adapter_versions import AdapterVersions
from serve.replica.lora import CONFIG, WEIGHTS, live_adapter


def write(folder: Path, weights: str, alpha: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(f'{{"r": 4, "lora_alpha": {alpha}}}')
    (folder / WEIGHTS).write_text(weights)
    return folder


@pytest.fixture
def versions(tmp_path: Path) -> AdapterVersions:
    return AdapterVersions(RunFolder(tmp_path / "run"), "terse", write(tmp_path / "terse", "first"))


def test_a_server_starts_with_what_was_promoted_until_the_recipes_folder_changes(
    versions: AdapterVersions, tmp_path: Path
) -> None:
    first = versions.start()
    other = versions.keep_folder(write(tmp_path / "other", "second"))
    versions.make_live(other.weights)
    assert versions.start() == versions.live() == other
    assert versions.before_live() == first
    write(tmp_path / "terse", "third")
    third = versions.start()
    assert third not in (first, other)
    assert (third.folder / WEIGHTS).read_text() == "third"
    assert versions.start() == third
    assert versions.before_live() == other


def test_files_that_are_written_again_leave_the_kept_version_as_it_was(
    versions: AdapterVersions, tmp_path: Path
) -> None:
    kept = versions.keep_latest()
    write(tmp_path / "terse", "again")
    assert (kept.folder / WEIGHTS).read_text() == "first"
    assert versions.keep_latest() != kept


def test_the_same_matrices_with_another_scale_are_another_version(versions: AdapterVersions, tmp_path: Path) -> None:
    assert versions.keep_latest() != versions.keep_folder(write(tmp_path / "louder", "first", alpha=16))


def test_a_replica_finds_the_live_version(versions: AdapterVersions, tmp_path: Path) -> None:
    assert live_adapter(tmp_path / "terse").folder == tmp_path / "terse"
    started = versions.start()
    assert live_adapter(versions.folder) == started
    assert live_adapter(tmp_path / "terse").weights == started.weights


def test_a_folder_without_an_adapter_is_named(versions: AdapterVersions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"terse: {tmp_path / 'none'} holds no {CONFIG}"):
        versions.keep_folder(tmp_path / "none")
    assert not list(versions.folder.glob("*"))
