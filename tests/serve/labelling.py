"""What the tests of the label page share: a database with tasks, and the page's server as its own process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from cluster.feedback import Completion, Feedback, Prompt

START_SECONDS = 180.0


def fill(database: Feedback, prompts: int, texts: list[str]) -> None:
    """Adds prompts that all have the same answers."""
    names = [f"p{number:03d}" for number in range(prompts)]
    database.add_prompts([Prompt(id=name, messages=[{"role": "user", "content": f"Q {name}"}]) for name in names])
    database.add_completions(
        [
            Completion(prompt_id=name, index=index, text=text, token_ids=[], model="secret", weights="abc")
            for name in names
            for index, text in enumerate(texts)
        ]
    )


@contextmanager
def label_server(run: Path, port: int) -> Iterator[str]:
    """What `triptych label` runs, killed without warning at the end."""
    code = f"from serve.label_app import *; serve_labels(RunFolder({str(run)!r}), '127.0.0.1', {port}, people=2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                httpx.get(f"{url}/label")
                break
            except httpx.TransportError:
                assert process.poll() is None, "the label server ended"
                assert time.monotonic() < end, "the label server did not start"
                time.sleep(0.1)
        yield url
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
