"""Numbers over the steps of a stage: one JSON object a line in `metrics.jsonl`."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends a line a step. On resume, lines of steps that will be done again are removed first."""

    def __init__(self, folder: Path, resume_at: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] < resume_at]
        side = self.path.with_suffix(".side")
        side.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        side.replace(self.path)

    def write(self, step: int, **values: Any) -> None:
        """Adds one line: the step, the wall clock and the values."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `metrics.jsonl`, in order; a line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Stopwatch:
    """Seconds between laps."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = self._now()
        seconds, self._last = now - self._last, now
        return seconds
