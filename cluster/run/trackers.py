"""Experiment trackers, which take the metrics of a stage through their own client where it is installed.

They stand beside `metrics.jsonl`, the record of a run: a tracker that fails is left out from there on, and training
goes on.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import UserError, first_line
from cluster.recipe.base import TrackerName

# The project, unless the variable that a tracker has for it names another.
PROJECT = "triptych"
PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "trackio": "TRACKIO_PROJECT"}


class Tracker(Protocol):
    """A run of a stage at a tracker.

    Attributes:
        errors: what its client raises where the tracker cannot be reached or refuses something.
    """

    errors: tuple[type[Exception], ...]

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Sends the metrics of a step, which was done at a time in seconds since 1970."""

    def finish(self) -> None:
        """Ends the run."""


def require_clients(names: Sequence[TrackerName]) -> None:
    """Checks that the clients of trackers are installed, without importing them.

    Raises:
        UserError: one is not.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(
            f"training.trackers names {missing[0]}, whose client is not installed here: install it by "
            f"`pip install {missing[0]}`, or leave it out"
        )


def start_trackers(names: Sequence[TrackerName], folder: Path) -> dict[str, Tracker]:
    """Starts a run of the stage in `folder` at each tracker, named after the run's folder and the stage's.

    Raises:
        UserError: a client is not installed, or its tracker cannot be reached or refuses the run.
    """
    require_clients(names)
    started: dict[str, Tracker] = {}
    for name in names:
        client: Any = import_module(name)
        kind = _Mlflow if name == "mlflow" else _RunOfSteps
        errors = _errors_of(name, client)
        project = os.environ.get(PROJECT_VARIABLES[name]) or PROJECT
        try:
            started[name] = kind(client, project, f"{folder.parent.name}/{folder.name}", errors)
        except errors as error:
            with ended(started):
                raise UserError(f"training.trackers: {name} starts no run: {first_line(error)}") from error
    return started


@contextmanager
def ended(trackers: Mapping[str, Tracker]) -> Iterator[None]:
    """Ends the runs at all trackers when the context ends."""
    try:
        yield
    finally:
        for tracker in trackers.values():
            with suppress(*tracker.errors):
                tracker.finish()


def _errors_of(name: str, client: Any) -> tuple[type[Exception], ...]:
    own = {"wandb": "Error", "mlflow": "MlflowException"}.get(name)
    found = getattr(client if name == "wandb" else getattr(client, "exceptions", None), own, None) if own else None
    return (OSError, RuntimeError, ValueError, *((found,) if found else ()))


class _RunOfSteps:
    """A run at Weights & Biases, or at Trackio, whose client has the same functions."""

    def __init__(self, client: Any, project: str, name: str, errors: tuple[type[Exception], ...]) -> None:
        self.errors = errors
        self._run = client.init(project=project, name=name)

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        del seconds
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run at MLflow, by the client that keeps no active run for each thread."""

    def __init__(self, client: Any, project: str, name: str, errors: tuple[type[Exception], ...]) -> None:
        self.errors = errors
        self._client = client.MlflowClient()
        experiment = self._client.get_experiment_by_name(project)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self._run = self._client.create_run(identity, run_name=name).info.run_id

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, timestamp=round(1000 * seconds), step=step)

    def finish(self) -> None:
        self._client.set_terminated(self._run)


class TrackedSteps:
    """Sends rows of metrics to trackers, each step once.

    Args:
        trackers: runs at trackers, by the tracker's name.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._left = dict(trackers)
        self._sent = -1

    def follow(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Sends the steps that are new; those that a resumed stage repeats are the same again.

        Returns:
            A line for each tracker that failed, which gets nothing more.
        """
        failures = []
        for row in rows:
            if row["step"] <= self._sent:
                continue
            values = {key: value for key, value in row.items() if _is_metric(key, value)}
            for name, tracker in list(self._left.items()):
                try:
                    tracker.log(row["step"], row["time"], values)
                except tracker.errors as error:
                    del self._left[name]
                    failures.append(f"{name} gets no metrics from step {row['step']} on: {first_line(error)}")
            self._sent = row["step"]
        return failures


def _is_metric(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and name not in ("step", "steps", "time")
