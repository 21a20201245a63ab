"""The metrics of a run for TensorBoard, and for every tracker that takes in its event files.

TensorBoard because its files need no server and no account while a run works: `tensorboard --logdir runs` at any time.
They are made of `metrics.jsonl`, which stays what a run goes by.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILES = "events.out.tfevents.*"


class EventWriter:
    """Writes rows of metrics into event files beside them. What lies there from before a resume is made anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[tuple[int, float]] = []
        self._begin()

    def follow(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes those of all rows that are new; where a resumed stage has taken rows back, all of them."""
        known = len(self._written)
        if [_name(row) for row in rows[:known]] != self._written:
            self.close()
            self._written, known = [], 0
            self._begin()
        for row in rows[known:]:
            self._add(row)
            self._written.append(_name(row))
        self._events.flush()

    def close(self) -> None:
        """Writes what is still held back."""
        self._events.close()

    def _begin(self) -> None:
        # Takes half a second: only who writes events pays for it.
        from tensorboardX import SummaryWriter

        for file in self._folder.glob(FILES):
            file.unlink()
        self._events = SummaryWriter(str(self._folder))

    def _add(self, row: Mapping[str, Any]) -> None:
        step, time = _name(row)
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "time"):
                self._events.add_scalar(name, value, step, walltime=time)
        if row.get("samples"):
            said = [f"**{sample['given']}**\n\n{sample['written']}" for sample in row["samples"]]
            self._events.add_text("samples", "\n\n---\n\n".join(said), step, walltime=time)


def _name(row: Mapping[str, Any]) -> tuple[int, float]:
    return row["step"], row["time"]
