"""Trackers get the numbers of every step through their own clients, and a tracker that fails stops nothing."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.metrics import MetricsWriter, metrics_progress
from cluster.run.trackers import PROJECT_VARIABLES, require_clients

# A client with the interface of Weights & Biases and Trackio: it writes down its calls.
STEPS_CLIENT = """
import json, os
def note(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + chr(10))
class Error(Exception):
    pass
class Run:
    def log(self, values, step):
        if step == int(os.environ.get("FAILS_AT", "-1")):
            raise Error("the server is gone")
        note("log", step, values)
    def finish(self):
        note("finish")
def init(project, name):
    if os.environ.get("NO_KEY"):
        raise Error("no API key")
    note("init", project, name)
    return Run()
"""
# A client with the interface of MLflow's.
MLFLOW_CLIENT = """
import json, os, types
def note(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + chr(10))
exceptions = types.SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))
class MlflowClient:
    def get_experiment_by_name(self, name):
        return None
    def create_experiment(self, name):
        note("experiment", name)
        return "7"
    def create_run(self, experiment, run_name):
        note("run", experiment, run_name)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    def log_metric(self, run, name, value, timestamp, step):
        note("log", run, name, value, timestamp > 1e12, step)
    def set_terminated(self, run):
        note("finish", run)
"""


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Puts clients of all trackers on the path; returns the file of their calls."""
    for name in PROJECT_VARIABLES:
        (tmp_path / f"{name}.py").write_text(MLFLOW_CLIENT if name == "mlflow" else STEPS_CLIENT)
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delenv(PROJECT_VARIABLES[name], raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    yield tmp_path / "calls"
    for name in PROJECT_VARIABLES:
        sys.modules.pop(name, None)


def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "mine" / "sft"
    folder.mkdir(parents=True)
    return folder


def calls(file: Path) -> list[str]:
    return file.read_text().splitlines()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_numbers_of_every_step_reach_a_tracker_once(tmp_path: Path, clients: Path, name: str) -> None:
    folder = stage(tmp_path)
    with metrics_progress(folder, 2, "training", [name]):
        writer = MetricsWriter(folder, steps=2)
        writer.write(0, loss=2.5, samples=[])
        writer.write(1, loss=2.0, note="no number")
    assert calls(clients) == [
        '["init", "triptych", "mine/sft"]',
        '["log", 0, {"loss": 2.5}]',
        '["log", 1, {"loss": 2.0}]',
        '["finish"]',
    ]


def test_mlflow_gets_each_number_with_its_step_and_time(
    tmp_path: Path, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    folder = stage(tmp_path)
    with metrics_progress(folder, 1, "training", ["mlflow"]):
        MetricsWriter(folder).write(0, loss=2.5, tokens=7)
    assert calls(clients) == [
        '["experiment", "other"]',
        '["run", "7", "mine/sft"]',
        '["log", "r1", "loss", 2.5, true, 0]',
        '["log", "r1", "tokens", 7, true, 0]',
        '["finish", "r1"]',
    ]


def test_a_tracker_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, clients: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS_AT", "0")
    folder = stage(tmp_path)
    with metrics_progress(folder, 1, "training", ["wandb", "mlflow"]):
        MetricsWriter(folder).write(0, loss=2.5)
    assert '["log", "r1", "loss", 2.5, true, 0]' in calls(clients)
    assert "wandb gets no metrics from step 0 on: the server is gone" in capsys.readouterr().out


def test_a_tracker_that_starts_no_run_is_an_error_before_training(
    tmp_path: Path, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_KEY", "1")
    with (
        pytest.raises(UserError, match=r"training\.trackers: wandb starts no run: no API key"),
        metrics_progress(stage(tmp_path), 1, "training", ["wandb"]),
    ):
        pass


def test_a_client_that_is_not_installed_is_named() -> None:
    missing = [name for name in PROJECT_VARIABLES if find_spec(name) is None]
    if not missing:
        pytest.skip("all clients are installed")
    with pytest.raises(
        UserError, match=rf"{missing[0]}, whose client is not installed here: install it by `pip install"
    ):
        require_clients(missing)
