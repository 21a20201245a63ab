"""Runs commands of Triptych as processes, and waits for their results in the run folder."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.run.folder import RunFolder
from infra.bench.scenarios.command import end_family, wait_until
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
        wait_until(lambda: answers(f"{url}/label"), "the label page", process, 180, POLL_SECONDS)
        yield url
