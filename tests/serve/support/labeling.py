"""Helpers of the label page's tests: a database with tasks, and the page's server as its own process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.feedback import Completion, Feedback, FeedbackPrompt
from tests.helpers import answers, wait_until

START_SECONDS = 180.0


def fill(database: Feedback, prompts: int, texts: list[str]) -> None:
    """Adds prompts that all have the same answers."""
    names = [f"p{number:03d}" for number in range(prompts)]
    database.add_prompts(
        [FeedbackPrompt(id=name, messages=[{"role": "user", "content": f"Q {name}"}]) for name in names]
    )
    database.add_completions(
        [
            Completion(prompt_id=name, index=index, text=text, token_ids=[], model="secret", weights="abc")
            for name in names
            for index, text in enumerate(texts)
        ]
    )


@contextmanager
def label_server(run: Path, port: int) -> Iterator[str]:
    """Runs the server of `triptych label`, and kills it without warning at the end."""
    code = f"from serve.pages.label import *; serve_labels(RunFolder({str(run)!r}), '127.0.0.1', {port}, people=2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or answers(f"{url}/label"), START_SECONDS, "the label server")
        assert process.poll() is None, "the label server ended"
        yield url
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
