"""Submitting any command as a job to a Ray cluster, together with the code and the resolved recipe."""

import asyncio
import os
import shlex
import shutil
import socket
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlparse

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.compat import is_duplicate_job, is_starting_cluster, quiet_job_loggers
from cluster.errors import StageError, UserError, first_line
from cluster.recipe.base import PathKind, map_paths
from cluster.recipe.loading import dump_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.files import absolute
from cluster.runtime.session import CONNECT_SECONDS, PACKAGES, ROOT, auth_token

# The longest wait for a job server that is starting, and for the end of a job whose log has ended.
STATUS_SECONDS = 60.0
NOT_STAGED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "requirements")


def submit(address: str, command: list[str], recipe: Recipe | None, wait: bool = True) -> int:
    """Runs `triptych COMMAND RECIPE` as a Ray job.

    The run folder and the sources must be on storage that the cluster's nodes see under the same path.

    Args:
        address: the job server, such as http://HOST:8265.
        command: the command and its own arguments.
        recipe: the recipe, with overrides applied; None for a command without one.
        wait: whether to print the job's log until it ends, or to return once it is accepted.

    Returns:
        the exit code of the job, or 0 without waiting.

    Raises:
        UserError: no job server answers at the address, or it refuses the job.
        StageError: the job server is lost while the job runs, or the job ended without an exit code.
    """
    quiet_job_loggers()
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="triptych-job-") as staging:
        _stage(Path(staging), recipe)
        words = ["python", "-m", "pipelines", *command, *(["recipe.yaml"] if recipe else [])]
        job = _submit(client, address, shlex.join(words), staging)
    print(f"triptych: job {job} is submitted to {address}", flush=True)
    return _follow(client, job) if wait else 0


def _submit(client: JobSubmissionClient, address: str, entrypoint: str, working_dir: str) -> str:
    """Submits a job under an id of our own, so that the request can be repeated when its reply was lost."""
    job, deadline = f"triptych-{uuid.uuid4().hex[:12]}", time.monotonic() + STATUS_SECONDS
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": working_dir}, submission_id=job)
        except (RuntimeError, OSError, RayError) as error:
            if is_duplicate_job(error, job):
                return job
            if not is_starting_cluster(error) or time.monotonic() > deadline:
                raise UserError(f"the job server at {address} did not take the job: {first_line(error)}") from error
        time.sleep(1)


def resolved(recipe: Recipe) -> Recipe:
    """Makes every path of a recipe absolute, so that it means the same in the working directory of the job."""
    # A job uses the cluster that it runs on.
    own = {"run": str(recipe.folder), "cluster": recipe.cluster.model_copy(update={"address": "auto"})}
    placed: Recipe = map_paths(recipe, _anywhere)
    return placed.model_copy(update=own)


def _anywhere(place: PathKind, name: str) -> str:
    on_the_hub = place is PathKind.MODEL and not Path(name).exists()
    return name if on_the_hub else absolute(name)


def _client(address: str) -> JobSubmissionClient:
    place = urlparse(address)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise UserError(f"--address {address}: write the job server's address, such as http://127.0.0.1:8265")
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        with socket.create_connection((place.hostname, port), timeout=CONNECT_SECONDS):
            pass
        # For Ray, these variables take precedence over the argument.
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)
        token = auth_token()
        # Ray's client sends the token by itself only in token mode.
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise UserError(f"no Ray job server answers at {address}: {first_line(error)}") from error


def _stage(folder: Path, recipe: Recipe | None) -> None:
    for name in PACKAGES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=NOT_STAGED)
    if (ROOT / "pyproject.toml").exists():
        shutil.copy(ROOT / "pyproject.toml", folder)
    if recipe:
        (folder / "recipe.yaml").write_text(dump_recipe(resolved(recipe)), encoding="utf-8")


def _follow(client: JobSubmissionClient, job: str) -> int:
    try:
        asyncio.run(_print_logs(client, job))
        deadline = time.monotonic() + STATUS_SECONDS
        while time.monotonic() < deadline:
            details = client.get_job_info(job)
            if details.status.is_terminal():
                if details.driver_exit_code is None and details.status != JobStatus.SUCCEEDED:
                    raise StageError(f"job {job} ended {details.status}: {first_line(details.message or '')}")
                return details.driver_exit_code or 0
            time.sleep(0.5)
    except KeyboardInterrupt:
        print(f"triptych: job {job} goes on; `ray job stop {job}` ends it", flush=True)
        raise
    except (OSError, RuntimeError, RayError) as error:
        raise StageError(f"lost the job server while job {job} ran: {first_line(error)}") from error
    raise StageError(f"waited {STATUS_SECONDS:.0f} s for the state of job {job} after its log ended")


async def _print_logs(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
