"""Where a run's server is written down, and how commands and stages ask it for something over HTTP."""

import json
import os
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import StageError, UserError
from cluster.run.folder import RunFolder

# Reading and checking the weights of a large model takes minutes.
PROMOTE_SECONDS = 600.0
ANSWER_SECONDS = 30.0


class NotServedError(UserError):
    """No server of the run answers."""


def server_file(run: Path) -> Path:
    """The file that says where a run is served, while it is."""
    return run / "server.json"


def write_server(run: RunFolder, url: str, token: str) -> Path:
    """Says where a run is served, to whoever owns the folder and nobody else."""
    path = server_file(run.root)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"url": url, "token": token}, file)
    return path


def ask_server(run: Path, action: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the run's server says to a request below /admin; without a body it is only asked.

    Raises:
        NotServedError: the run is not being served.
        UserError: the server refuses, or nobody can tell where it is.
        StageError: the server failed.
    """
    path = server_file(run)
    try:
        server = json.loads(path.read_text(encoding="utf-8"))
        url, token = server["url"], server["token"]
    except FileNotFoundError as error:
        raise NotServedError(f"{run} is not being served: run `triptych serve {run}` first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: start the server again") from error
    headers = {"Authorization": f"Bearer {token}"}
    try:
        method, seconds = ("GET", ANSWER_SECONDS) if body is None else ("POST", PROMOTE_SECONDS)
        # The server is on this machine or beside it: a proxy that the environment names is not for it.
        reply = httpx.request(
            method, f"{url}/admin/{action}", json=body, headers=headers, timeout=seconds, trust_env=False
        )
        said = reply.json()
        if reply.is_success and isinstance(said, dict):
            return said
        message = str(said["error"]["message"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        # Whatever else answers at the address that a killed server left is none of this run's.
        raise NotServedError(f"no server answers at {url}: run `triptych serve {run}` first") from error
    raise StageError(message) if reply.is_server_error else UserError(message)
