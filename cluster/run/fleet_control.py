"""The number of rollout actors of a live RLHF run, changed from outside through two small files in the run folder.

The command writes `fleet.json`, what is wanted; the loop takes it between steps and writes `fleet_state.json`, what is.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import UserError
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder


@contextmanager
def fleet_control(run: RunFolder, actors: int) -> Iterator[None]:
    """Says that the run has a live fleet of so many actors, for as long as the context lasts."""
    _wish(run).unlink(missing_ok=True)
    write_fleet_state(run, actors)
    try:
        yield
    finally:
        _state(run).unlink(missing_ok=True)
        _wish(run).unlink(missing_ok=True)


def write_fleet_state(run: RunFolder, actors: int) -> None:
    """Says how many actors the fleet has now."""
    write_json(_state(run), {"actors": actors, "process": os.getpid()})


def take_wish(run: RunFolder) -> int | None:
    """How many actors were asked for since this was last called, or None if nobody asked."""
    taken = run.root / "fleet.taken.json"
    try:
        _wish(run).replace(taken)
    except FileNotFoundError:
        return None
    wanted = _read(taken, "target")
    taken.unlink()
    return wanted


def change_fleet(run: RunFolder, change: int) -> int:
    """Asks for that many actors more, or fewer.

    Returns:
        the number asked for.

    Raises:
        UserError: no RLHF stage is live in this run, or fewer than one actor would be left.
    """
    # The state that a killed loop left behind names a process that no longer holds the run.
    holder = run.holder()
    now = _read(_state(run), "actors")
    if now is None or holder is None or holder != _read(_state(run), "process"):
        raise UserError(f"no rlhf stage is running in {run.root}: start one, then change its fleet")
    wished = _read(_wish(run), "target")
    target = (now if wished is None else wished) + change
    if target < 1:
        raise UserError(f"{run.root} has {now} rollout actors: at least 1 must stay")
    write_json(_wish(run), {"target": target})
    return target


def _wish(run: RunFolder) -> Path:
    return run.root / "fleet.json"


def _state(run: RunFolder) -> Path:
    return run.root / "fleet_state.json"


def _read(path: Path, key: str) -> int | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[key]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove it") from error
    return int(value)
