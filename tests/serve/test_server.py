"""The checks and decisions before anything starts."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import Engine, Serve
from cluster.run.folder import RunFolder
from cluster.run.versions import Versions
from cluster.runtime.plan import Allocation
from serve import application
from serve.application import signals_interrupt
from serve.compat.ray_serve import done_within
from serve.server import (
    SMALL_BYTES,
    finished_models,
    group_models,
    replica_allocation,
    serve_until_interrupted,
    url_host,
)
from tests.demo_recipe import DEMO
from tests.helpers import free_port


def finish(root: Path, folder: str, config: dict) -> None:
    (root / folder).mkdir()
    manifest = {"stage": folder, "fingerprint": "f", "config": config, "inputs": {}, "version": "1", "seconds": 1.0}
    (root / folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_policy_in_training_is_served_once_it_was_promoted(tmp_path: Path) -> None:
    run, versions = RunFolder(tmp_path), Versions(RunFolder(tmp_path), "policy")
    finish(tmp_path, "sft", {})
    assert finished_models(run) == ["sft"]
    version = versions.keep(lambda folder: (folder / "model.safetensors").touch())
    assert finished_models(run) == ["sft"]
    versions.make_live(version.weights)
    assert finished_models(run) == ["sft", "policy"]
    assert versions.start() == version


def test_finished_models_are_served_and_no_others(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="no finished model"):
        finished_models(run)
    for folder in ("corpus", "policy", "base", "reward"):
        finish(tmp_path, folder, {})
    (tmp_path / "sft").mkdir()
    assert finished_models(run) == ["base", "policy", "reward"]


def test_a_run_that_is_being_served_is_not_served_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    given = {"name": "t", "model": {"start_from": "x"}, **DEMO}
    recipe = Recipe.model_validate(given | {"serve": {"port": free_port()}})
    finish(tmp_path, "sft", {})
    with run.serving(), pytest.raises(UserError, match=f"{tmp_path} is being served by process"):
        serve_until_interrupted(recipe, run)


def test_an_end_that_hangs_is_waited_for_no_longer_than_its_deadline() -> None:
    hangs, began = threading.Event(), time.monotonic()
    assert not done_within(lambda: hangs.wait() and None, 0.2)
    assert time.monotonic() - began < 30
    hurry = threading.Event()
    threading.Timer(0.1, hurry.set).start()
    assert not done_within(lambda: hangs.wait() and None, 60, hurry)
    assert time.monotonic() - began < 50
    hangs.set()
    assert done_within(lambda: None, 60)


def test_a_second_signal_ends_the_wait_for_answers_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals_interrupt() as hurry:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert not hurry.is_set(), "it is the same Ctrl-C, passed on by make or a shell"
        monkeypatch.setattr(application, "SECOND_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        assert hurry.is_set()
    assert signal.getsignal(signal.SIGINT) == before


def test_several_gpus_share_a_model_where_there_are_some() -> None:
    def share(size: int | None, gpus: float) -> float:
        section = Serve(engine=Engine(tensor_parallel_size=size))
        return replica_allocation(section, Allocation(cpus=1, gpus=gpus, threads=1)).gpus

    assert [share(None, 0.5), share(1, 0.5), share(4, 1), share(1, 0)] == [0.5, 1, 4, 0]
    with pytest.raises(UserError, match="tensor_parallel_size=2 needs as many GPUs"):
        share(2, 0)


def test_addresses_are_written_as_browsers_read_them() -> None:
    assert [url_host(host) for host in ("127.0.0.1", "0.0.0.0", "::1")] == ["127.0.0.1", "localhost", "[::1]"]


def test_small_models_share_a_process_on_cpus_and_no_others(tmp_path: Path) -> None:
    for name in ("base", "policy", "large"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate(SMALL_BYTES + 1 if name == "large" else 10)
    models = {name: tmp_path / name for name in ("base", "large", "policy")}
    on_cpus = group_models(models, Allocation(cpus=0.5, gpus=0, threads=1))
    assert [list(group) for group in on_cpus] == [["base", "policy"], ["large"]]
    assert [list(group) for group in group_models(models, Allocation(0.5, 1, 1))] == [["base"], ["large"], ["policy"]]
