"""Small things that several tests need."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.recipe.rlhf.fleet import FleetSettings
from cluster.recipe.rlhf.regularization import Kl, Stop
from cluster.recipe.rlhf.section import Rlhf, RolloutSampling
from pipelines.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "infra" / "recipes" / "demo.yaml"
# Real data beside the checkout; tests that read it skip where it is absent.
SHARED = Path(os.environ.get("TRIPTYCH_SHARED", ROOT.parent / "shared")) / "data"


def triptych(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "pipelines", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def triptych_here(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line in this process, which saves the half second of a start."""
    given = [str(word) for word in words]
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        main(given)
    code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


def free_port() -> int:
    """Returns a port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_free_ports() -> int:
    """Returns the first of two ports of the loopback interface, one after the other, that nothing listens on now."""
    for _ in range(100):
        first = free_port()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", first + 1)):
                return first
    raise TimeoutError("no two ports one after the other are free")


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises a TimeoutError that names what was waited for unless it holds within `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def fastest(work: Callable[[], object], below: float, tries: int = 3) -> float:
    """Returns the seconds that `work` takes: those of the first of at most `tries` calls that take less than `below`.

    A busy machine makes any one call slow, and a fault makes all of them slow.
    """
    seconds = float("inf")
    for _ in range(tries):
        begun = time.monotonic()
        work()
        seconds = min(seconds, time.monotonic() - begun)
        if seconds < below:
            break
    return seconds


def answers(url: str) -> bool:
    """Tells whether an HTTP server is up: it answers, if only to ask for a token."""
    try:
        return not httpx.get(url, timeout=5).is_server_error
    except httpx.HTTPError:
        return False


def rlhf(**fields: Any) -> Rlhf:
    """Makes a recipe's RLHF section from the names of its fields alone: those of `kl` begin with kl_."""
    sections = {"sampling": RolloutSampling, "stop": Stop, "fleet": FleetSettings}
    places = {name: (section, name) for section, model in sections.items() for name in model.model_fields}
    places |= {f"kl_{name}": ("kl", name) for name in Kl.model_fields}
    given: dict[str, Any] = {}
    for name, value in fields.items():
        if name in places:
            section, own = places[name]
            given.setdefault(section, {})[own] = value
        else:
            given[name] = value
    return Rlhf(**given)
