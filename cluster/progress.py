"""A progress bar and TensorBoard's files, both of which follow the metrics a stage writes, wherever it runs."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.metrics import read_metrics
from cluster.tracker import EventWriter

PERIOD = 1.0


@contextmanager
def metrics_progress(folder: Path, steps: int, title: str) -> Iterator[Console]:
    """Shows how many of `steps` are in the folder's `metrics.jsonl`, and the last loss, until the block ends; what is
    in it, TensorBoard finds beside it. What is printed to the console that it gives comes above the bar."""
    stop = threading.Event()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figure]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=steps, figure="")

        def follow() -> None:
            with closing(EventWriter(folder)) as events:
                while True:
                    finished = stop.wait(PERIOD)
                    if rows := read_metrics(folder):
                        last = rows[-1]
                        figure = f"loss {last['loss']:.3f}" if "loss" in last else ""
                        progress.update(task, completed=last["step"] + 1, figure=figure)
                        events.follow(rows)
                    if finished:
                        return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield progress.console
        finally:
            stop.set()
            thread.join(PERIOD * 5)
