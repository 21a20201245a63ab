"""Requests of commands and stages to a run's server, which leaves its address and a token in the run folder."""

import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import StageError, UserError
from cluster.run.folder import RunFolder

# Reading and checking the weights of a large model takes minutes.
PROMOTE_SECONDS = 600.0
REPLY_SECONDS = 30.0


class NotServedError(UserError):
    """The failure to reach a server of a run."""


def server_file(run: Path) -> Path:
    """Returns the path of the file with the address of a run's server, which exists while the run is served."""
    return run / "server.json"


def write_server(
    run: RunFolder,
    url: str,
    token: str,
    names: Mapping[str, str] | None = None,
    application: str = "",
    certificate: Path | None = None,
) -> Path:
    """Writes the address and token of a run's server, readable by the owner of the folder alone.

    Args:
        run: the run folder.
        url: the server's address.
        token: a key with the scope admin.
        names: the names under which the server serves the run's models, where they differ from the run's.
        application: the server's name in Ray Serve, if it has one.
        certificate: the file of its TLS certificate; None if it has none.
    """
    path = server_file(run.root)
    run.create()
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        certificate_file = str(certificate) if certificate else ""
        optional = {
            "run": str(run.root.resolve()),
            "names": dict(names or {}),
            "application": application,
            "certificate": certificate_file,
        }
        json.dump({"url": url, "token": token} | {name: value for name, value in optional.items() if value}, file)
    return path


def served_at(run: Path) -> str | None:
    """Reads the address of a run's server as it last started; None if it is not being served, or its file is
    damaged."""
    return _written(run, "url")


def application_of(run: Path) -> str | None:
    """Reads the name in Ray Serve of a run's server as it last started; None if it is not being served."""
    return _written(run, "application")


def _written(run: Path, name: str) -> str | None:
    try:
        server = json.loads(server_file(run).read_text(encoding="utf-8"))
        return None if _is_copied(run, server) else str(server[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_copied(run: Path, server: Any) -> bool:
    """Tells whether a folder's file of a server is that of the run from which the folder was copied."""
    return isinstance(server, dict) and server.get("run", str(run.resolve())) != str(run.resolve())


def ask_server(run: Path, action: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sends a request to the run's server.

    Args:
        run: the run folder.
        action: the path below /admin.
        body: the JSON body of a POST, or None for a GET.

    Returns:
        the JSON reply.

    Raises:
        NotServedError: the run is not being served.
        UserError: the server refuses, or the file with its address is damaged.
        StageError: the server failed.
    """
    path = server_file(run)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotServedError(f"{run} is not being served: run `triptych serve {run}` first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: start the server again") from error
    try:
        server = json.loads(text)
        if _is_copied(run, server):
            raise NotServedError(
                f"{run} is not being served: its server.json is that of {server['run']}, from which it was copied"
            )
        url, token, names = server["url"], server["token"], server.get("names", {})
        verify = pinned(Path(server["certificate"])) if "certificate" in server else True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or its certificate is gone: start the server again") from error
    headers = {"Authorization": f"Bearer {token}"}
    if body and body.get("model") in names:
        body = body | {"model": names[body["model"]]}
    try:
        method, seconds = ("GET", REPLY_SECONDS) if body is None else ("POST", PROMOTE_SECONDS)
        # The server is on this machine or near it: proxies from the environment are not meant for it.
        reply = httpx.request(
            method, f"{url}/admin/{action}", json=body, headers=headers, timeout=seconds, trust_env=False, verify=verify
        )
        answer = reply.json()
        if reply.is_success and isinstance(answer, dict):
            return answer
        message = str(answer["error"]["message"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        # Another program may answer at an address that a killed server left behind.
        raise NotServedError(f"no server answers at {url}: run `triptych serve {run}` first") from error
    raise StageError(message) if reply.is_server_error else UserError(message)


def pinned(certificate: Path) -> ssl.SSLContext:
    """Returns a TLS context that accepts a server by this very certificate, whatever its issuer and host name.

    Raises:
        OSError: the file cannot be read, or is no certificate.
    """
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    # The certificate itself is trusted, and not only one that signs itself.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
