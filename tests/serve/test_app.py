"""What is decided before anything starts."""

import json
from pathlib import Path

import pytest

from cluster.failures import UserError
from cluster.run import RunFolder
from serve.app import finished_models, url_host


def finish(root: Path, folder: str, config: dict) -> None:
    (root / folder).mkdir()
    manifest = {"stage": folder, "fingerprint": "f", "config": config, "inputs": {}, "version": "1", "seconds": 1.0}
    (root / folder / "manifest.json").write_text(json.dumps(manifest))


def test_finished_models_are_served_and_no_others(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="no finished model"):
        finished_models(run)
    for folder in ("corpus", "policy", "base", "reward"):
        finish(tmp_path, folder, {})
    (tmp_path / "sft").mkdir()
    assert finished_models(run) == {name: tmp_path / name for name in ("base", "policy", "reward")}


def test_addresses_are_written_as_browsers_read_them() -> None:
    assert [url_host(host) for host in ("127.0.0.1", "0.0.0.0", "::1")] == ["127.0.0.1", "localhost", "[::1]"]
