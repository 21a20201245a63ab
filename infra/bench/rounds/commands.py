"""Runs commands of Triptych as processes, and waits for their results in the run folder."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.run.folder import RunFolder
from infra.bench.scenarios.command import end_family
from infra.bench.servers.start import answers, free_port

STOP_SECONDS = 15.0
POLL_SECONDS = 0.5


@contextlib.contextmanager
def command(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `triptych WORDS`, whose output is added to a log; at the end of the context ends it as Ctrl-C does."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words], stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        end_family(process.pid)
        process.wait(STOP_SECONDS)


@contextlib.contextmanager
def label_page(run: RunFolder, log: Path) -> Iterator[str]:
    """Runs `triptych label`; gives its address."""
    port = free_port()
    with command(log, "label", str(run.root), "--port", str(port)) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/label"), 180, "the label page", process)
        yield url


def wait_until(
    holds: Callable[[], bool], seconds: float, what: str, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Waits until something holds.

    Raises:
        TimeoutError: it does not in time, or the process ends before; the message names what.
    """
    end = time.monotonic() + seconds
    while not holds():
        if process and process.poll() is not None:
            raise TimeoutError(f"a command ended with {process.returncode} before {what}")
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(POLL_SECONDS)
