"""What is decided before anything starts."""

import json
import socket
from pathlib import Path

import pytest

from cluster.failures import UserError
from cluster.run import RunFolder
from serve.__main__ import recipe_of
from serve.app import finished_models, require_free_port, url_host


def finish(root: Path, folder: str, config: dict) -> None:
    (root / folder).mkdir()
    manifest = {"stage": folder, "fingerprint": "f", "config": config, "inputs": {}, "version": "1", "seconds": 1.0}
    (root / folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_taken_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: Address already in use.*another port") as caught:
            require_free_port("127.0.0.1", port)
    assert "\n" not in str(caught.value)
    require_free_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("no.such.host.invalid", 8000)])
def test_impossible_addresses_are_refused(host: str, port: int) -> None:
    with pytest.raises(UserError):
        require_free_port(host, port)


def test_finished_models_are_served_and_no_others(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="no finished model"):
        finished_models(run)
    for folder in ("corpus", "policy", "base", "reward"):
        finish(tmp_path, folder, {})
    (tmp_path / "sft").mkdir()
    assert finished_models(run) == {"base": tmp_path / "base", "policy": tmp_path / "policy"}


def test_recipe_comes_from_the_manifests(tmp_path: Path) -> None:
    finish(tmp_path, "base", {"seed": 1, "model": {"size": "5M", "context": 512}, "files": {}})
    recipe = recipe_of(RunFolder(tmp_path), "0.0.0.0", 9000)
    assert (recipe.model.size, recipe.model.context) == ("5M", 512)
    assert (recipe.serve.host, recipe.serve.port, recipe.folder) == ("0.0.0.0", 9000, tmp_path)
    finish(tmp_path, "sft", {"model": {"context": 0}})
    with pytest.raises(UserError, match=r"another version: model\.context"):
        recipe_of(RunFolder(tmp_path), "0.0.0.0", 9000)


def test_addresses_are_written_as_browsers_read_them() -> None:
    assert [url_host(host) for host in ("127.0.0.1", "0.0.0.0", "::1")] == ["127.0.0.1", "localhost", "[::1]"]
