"""All uses of undocumented parts of Ray, in one place. Written against Ray 2.60: check each when that version
changes."""

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# How often a connection that carries a log asks whether the other side is there.
HEARTBEAT_SECONDS = 15.0
# Environment of a cluster on this machine alone. Look at `RAY_CONFIG(…, prestart_worker_first_driver` in Ray's
# ray_config_def.h, and at `ENABLE_PREEMPTION_WATCHER_ENV_VAR` in ray/train/v2/_internal/constants.py.
LOCAL_CLUSTER_ENV = {
    # Two processes that would wait for tasks from the start: 2 s of CPU time, and stages need others.
    "RAY_prestart_worker_first_driver": "0",
    # A watcher for notices that the machine will be taken away, which nobody gives here: 4 s of CPU time.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
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


def listen_on_loopback() -> None:
    """Makes a local cluster listen on the loopback interface alone, unless the user has set Ray's variable otherwise.

    Without it, seven sockets of a cluster on one machine listen on all interfaces. Ray reads the variable when it is
    imported: look at `ENABLE_RAY_CLUSTER` in ray/_private/ray_constants.py and in `get_node_ip_address`.
    """
    if os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0") == "0":
        constants = sys.modules.get("ray._private.ray_constants")
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]


def quiet_session_loggers() -> None:
    """Raises the levels of Ray's loggers in a driver to warnings or errors; call it after `import ray`."""
    _set_levels(_SESSION_LOGGERS)


def quiet_job_loggers() -> None:
    """Raises the levels of the loggers of Ray's job client to warnings; call it after importing the client."""
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


def is_node_timeout(error: BaseException) -> bool:
    """Tells whether an exception says that Ray's processes did not start in time: Ray raises a bare `Exception` after
    30 s, at `raylet_start_wait_time_s` in ray/_private/node.py."""
    return type(error) is Exception and "timed out during startup" in str(error)


def is_data_stall(error: BaseException) -> bool:
    """Tells whether Ray Data ended because nothing moved (ray.data.exceptions.ExecutionTimeoutError, by name: its
    import takes seconds)."""
    return type(error).__name__ == "ExecutionTimeoutError"


def is_start_timeout(error: BaseException) -> bool:
    """Tells whether Ray Train ended because its workers found no room (WorkerGroupStartupTimeoutError in
    ray/train/v2/_internal/exceptions.py, by name: its import takes seconds)."""
    return any(type(each).__name__ == "WorkerGroupStartupTimeoutError" for each in (error, *wrapped_errors(error)))


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


def job_connection_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that Ray's job client raises when its connection is lost: its log comes by aiohttp, the
    rest by requests, whose errors are OSErrors (ray/dashboard/modules/job/sdk.py)."""
    from ray.dashboard.modules.job import sdk
    from ray.exceptions import RayError

    # A part of `ray[default]`, which this project does not require by itself.
    aiohttp: Any = sdk.aiohttp
    return (OSError, RuntimeError, RayError, aiohttp.ClientError)


async def job_log(client: "JobSubmissionClient", job: str) -> AsyncIterator[str]:
    """Yields the log of a job from its beginning, until the job or the connection ends.

    `JobSubmissionClient.tail_job_logs` reads on for ever, without letting anything else run, when a proxy ends the
    connection, and says nothing by itself for the proxy to see: look there for the address and the headers.
    """
    from ray.dashboard.modules.job import sdk

    aiohttp: Any = sdk.aiohttp
    address = f"{client._address}/api/jobs/{job}/logs/tail"
    async with (
        aiohttp.ClientSession(cookies=client._cookies, headers=client._headers) as session,
        session.ws_connect(address, ssl=client._ssl_context, heartbeat=HEARTBEAT_SECONDS) as socket,
    ):
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            yield message.data


def free_per_node() -> dict[str, dict[str, float]]:
    """Returns the free resources of every node of the cluster, by the node's id (ray/_private/state.py)."""
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def session_folder_option(folder: Path) -> dict[str, Any]:
    """Returns the argument of `ray.init` for the folder of sockets and logs: private, without a public equivalent."""
    return {"_temp_dir": str(folder)}


def joined_session_folder() -> Path | None:
    """Returns the folder of the cluster that this process has joined as one of its nodes; None over Ray's client
    (`Node.get_session_dir_path` in ray/_private/node.py)."""
    from ray._private import worker

    node = worker._global_node
    return Path(node.get_session_dir_path()) if node is not None else None


def local_cluster_processes() -> list[psutil.Process]:
    """Lists the worker processes of the local cluster that this process started: children of its child `raylet`."""
    with suppress(psutil.NoSuchProcess):
        raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
        return [process for raylet in raylets for process in raylet.children(recursive=True)]
    return []


def _set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
