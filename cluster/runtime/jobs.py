"""Submitting any command as a job to a Ray cluster, together with the code and the resolved recipe."""

import asyncio
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.compat import is_duplicate_job, is_starting_cluster, job_connection_errors, job_log, quiet_job_loggers
from cluster.errors import StageError, UserError, first_line
from cluster.recipe.base import NAMED, PathKind, is_name, map_paths
from cluster.recipe.loading import dump_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.lock import JOB, JOB_SERVER
from cluster.run.storage.files import absolute
from cluster.runtime.session import CONNECT_SECONDS, PACKAGES, ROOT, auth_token
from cluster.runtime.shipping import modules_of, stage_files, stage_modules

# The longest wait for a job server that is starting.
STATUS_SECONDS = 60.0
# How long a job server may be away while a job is followed.
LOST_SECONDS = 300.0
POLL_SECONDS = 0.5
# The first command of a job with a recipe, in its working directory.
RECEIVE = "python -m cluster.runtime.shipping"
NOT_STAGED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "requirements")


def submit(
    address: str, command: list[str], recipe: Recipe | None, wait: bool = True, env: Mapping[str, str] | None = None
) -> int:
    """Runs `triptych COMMAND RECIPE` as a Ray job.

    The run folder must be on storage that the cluster's nodes see under the same path, and so must input files that are
    too large to travel. Modules that the recipe names travel.

    Args:
        address: the job server, such as http://HOST:8265.
        command: the command and its own arguments.
        recipe: the recipe, with overrides applied; None for a command without one.
        wait: whether to print the job's log until it ends, or to return once it is accepted.
        env: environment variables of the job and of its processes.

    Returns:
        the exit code of the job, or 0 without waiting.

    Raises:
        UserError: no job server answers at the address, or it refuses the job.
        StageError: the job server is lost while the job runs, or the job ended without an exit code.
    """
    quiet_job_loggers()
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="triptych-job-") as staging:
        for note in _stage(Path(staging), recipe):
            print(f"triptych: {note}", file=sys.stderr)
        words = shlex.join(["python", "-m", "pipelines", *command, *(["recipe.yaml"] if recipe else [])])
        job = _submit(client, address, f"{RECEIVE} && {words}" if recipe else words, staging, env or {})
    print(f"triptych: job {job} is submitted to {address}", flush=True)
    if not wait:
        print(f"triptych: `triptych attach {job} --address {address}` follows it", flush=True)
    return JobFollower(client, address, job).follow() if wait else 0


def attach(address: str, job: str) -> int:
    """Prints the log of a job from its beginning until the job ends, and returns its exit code.

    Raises:
        UserError: no job server answers at the address, or it knows no such job.
        StageError: the job server is lost while the job runs, or the job ended without an exit code.
    """
    quiet_job_loggers()
    client = _client(address)
    try:
        client.get_job_info(job)
    except RuntimeError as error:
        raise UserError(f"the job server at {address} has no job {job}: {first_line(error)}") from error
    return JobFollower(client, address, job).follow()


def _submit(
    client: JobSubmissionClient, address: str, entrypoint: str, working_dir: str, env: Mapping[str, str]
) -> str:
    """Submits a job under an id of our own, so that the request can be repeated when its reply was lost."""
    job, deadline = f"triptych-{uuid.uuid4().hex[:12]}", time.monotonic() + STATUS_SECONDS
    runtime_env = {"working_dir": working_dir, "env_vars": {**env, JOB: job, JOB_SERVER: address}}
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, submission_id=job)
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
    return name if place in NAMED and is_name(place, name) else absolute(name)


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


def _stage(folder: Path, recipe: Recipe | None) -> list[str]:
    """Fills the working directory of a job, and returns a line for everything that does not travel."""
    for name in PACKAGES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=NOT_STAGED)
    if (ROOT / "pyproject.toml").exists():
        shutil.copy(ROOT / "pyproject.toml", folder)
    if recipe is None:
        return []
    placed = resolved(recipe)
    (folder / "recipe.yaml").write_text(dump_recipe(placed), encoding="utf-8")
    return [*stage_modules(modules_of(recipe), folder), *stage_files(placed, folder)]


class JobFollower:
    """Prints the log of a job until the job ends, over as many connections as it takes.

    Proxies end connections on which nothing is said for a while.
    """

    def __init__(self, client: JobSubmissionClient, address: str, job: str) -> None:
        self._client, self._address, self._job = client, address, job
        self._printed = 0

    def follow(self) -> int:
        """Prints the log until the job ends, and returns the exit code of the job.

        Raises:
            StageError: the job server has not answered for `LOST_SECONDS`, or the job ended without an exit code.
        """
        again = f"`triptych attach {self._job} --address {self._address}`"
        answered = time.monotonic()
        while True:
            try:
                asyncio.run(self._print_log())
                # The log comes from the job server, until the connection ends.
                answered = time.monotonic()
                details = self._client.get_job_info(self._job)
                if details.status.is_terminal():
                    # Lines that were written after the end of the last connection.
                    self._print(self._client.get_job_logs(self._job)[self._printed :])
                    break
                answered = time.monotonic()
            except KeyboardInterrupt:
                stop = f"`ray job stop {self._job} --address {self._address}`"
                print(f"triptych: job {self._job} goes on: {again} follows it, {stop} ends it", flush=True)
                raise
            except job_connection_errors() as error:
                if time.monotonic() - answered > LOST_SECONDS:
                    raise StageError(
                        f"the job server at {self._address} has not answered for {LOST_SECONDS:.0f} s "
                        f"({first_line(error)}); job {self._job} may go on: {again} follows it"
                    ) from error
            time.sleep(POLL_SECONDS)
        if details.driver_exit_code is None and details.status != JobStatus.SUCCEEDED:
            raise StageError(f"job {self._job} ended {details.status}: {first_line(details.message or '')}")
        return details.driver_exit_code or 0

    async def _print_log(self) -> None:
        """Prints new lines of the log until the connection ends."""
        seen = 0
        async for text in job_log(self._client, self._job):
            # Every connection begins with the beginning of the log.
            self._print(text[max(0, self._printed - seen) :])
            seen += len(text)

    def _print(self, text: str) -> None:
        print(text, end="", flush=True)
        self._printed += len(text)
