"""Uses of what Ray does not document, in one place. Written against Ray 2.60: check each when that version changes."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

# Environment of a cluster on this machine alone. Look at `RAY_CONFIG(…, prestart_worker_first_driver` in Ray's
# ray_config_def.h, and at `ENABLE_PREEMPTION_WATCHER_ENV_VAR` in ray/train/v2/_internal/constants.py.
LOCAL_CLUSTER_ENV = {
    # Two processes that would wait for tasks from the start: 2 s of CPU time, and stages need others.
    "RAY_prestart_worker_first_driver": "0",
    # A watcher for notices that the machine will be taken away, which nobody gives here: 4 s of CPU time.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Binds all of a local cluster to the loopback interface; Ray reads it when it is imported. Without it, seven sockets of
# a cluster on one machine listen on all interfaces (look at ENABLE_RAY_CLUSTER in ray/_private/ray_constants.py).
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Ray's loggers that repeat on every start that token authentication is on, and report on every dataset; the stages have
# progress bars of their own. They are private module names: look there if lines of Ray appear between the stages' own.
_SESSION_LOGGERS = {
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
    "ray.data._internal.execution": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    "ray.train": logging.WARNING,
}
# The job client sets its own loggers to INFO, when it is imported; only the job's log is of interest.
_JOB_LOGGERS = {
    "ray.dashboard.modules.dashboard_sdk": logging.WARNING,
    "ray.dashboard.modules.job.sdk": logging.WARNING,
    "ray._private.runtime_env.packaging": logging.WARNING,
}


def quiet_session_loggers() -> None:
    """Silences what Ray logs in a driver beside its warnings; call it after `import ray`."""
    _set_levels(_SESSION_LOGGERS)


def quiet_job_loggers() -> None:
    """Silences what Ray's job client logs beside its warnings; call it after importing the client."""
    _set_levels(_JOB_LOGGERS)


def wrapped_errors(error: BaseException) -> list[BaseException]:
    """Lists the exceptions that an exception of Ray wraps, whichever part of Ray raised it.

    Attributes and not classes are looked at, so that this needs no import of Ray Train: `RayTaskError.cause`,
    `ControllerError.controller_failure` and `WorkerGroupError.worker_failures` (ray/exceptions.py and
    ray/train/v2/api/exceptions.py).
    """
    failures = getattr(error, "worker_failures", {})
    found = [getattr(error, "cause", None), getattr(error, "controller_failure", None), *failures.values()]
    return [item for item in found if isinstance(item, BaseException)]


def is_remote_error(error: BaseException) -> bool:
    """Tells whether Ray re-raised this exception from a task: its text is then a traceback, not a message.

    Ray raises an instance of a class that is both RayTaskError and the class of the cause: only it has a `cause`.
    """
    return hasattr(error, "cause")


def is_data_stall(error: BaseException) -> bool:
    """Tells whether Ray Data ended because nothing moved (ray.data.exceptions.ExecutionTimeoutError, by name: its
    import takes seconds)."""
    return type(error).__name__ == "ExecutionTimeoutError"


def is_from_ray(error: BaseException) -> bool:
    """Tells whether an exception's class is Ray's own."""
    return type(error).__module__.startswith("ray")


def is_duplicate_job(error: BaseException, job: str) -> bool:
    """Tells whether a job server refused a submission because it has a job of that id (ray/dashboard/modules/job)."""
    return f"{job} already exists" in str(error)


def is_starting_cluster(error: BaseException) -> bool:
    """Tells whether a job server failed because its cluster has just started: its agents are not up yet, or it drops
    connections."""
    return "No available agent" in str(error) or isinstance(error, OSError)


def session_folder_option(folder: Path) -> dict[str, Any]:
    """Returns the argument of `ray.init` for the folder of sockets and logs: private, without a public equivalent."""
    return {"_temp_dir": str(folder)}


def local_cluster_processes() -> list[psutil.Process]:
    """Lists the worker processes of the local cluster that this process started: children of its child `raylet`."""
    with suppress(psutil.NoSuchProcess):
        raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
        return [process for raylet in raylets for process in raylet.children(recursive=True)]
    return []


def _set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
