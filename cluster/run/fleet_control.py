"""Resizing the rollout fleet of a live RLHF run from another process, through two small files in the run folder.

The command writes the wanted number of actors to `fleet.json`; the loop takes it between two steps, and writes the
current number to `fleet_state.json`.
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
    """Publishes the size of the run's live fleet, until the block ends."""
    _request_file(run).unlink(missing_ok=True)
    write_fleet_state(run, actors)
    try:
        yield
    finally:
        _state_file(run).unlink(missing_ok=True)
        _request_file(run).unlink(missing_ok=True)


def write_fleet_state(run: RunFolder, actors: int) -> None:
    """Publishes the current number of actors."""
    write_json(_state_file(run), {"actors": actors, "process": os.getpid()})


def take_resize_request(run: RunFolder) -> int | None:
    """Takes the number of actors that was requested since the last call, or None."""
    taken = run.root / "fleet.taken.json"
    try:
        _request_file(run).replace(taken)
    except FileNotFoundError:
        return None
    wanted = _read(taken, "target")
    taken.unlink()
    return wanted


def request_resize(run: RunFolder, change: int) -> int:
    """Requests more or fewer actors.

    Args:
        run: the run folder.
        change: the number of actors to add, or if negative to remove.

    Returns:
        the number of actors requested in all.

    Raises:
        UserError: no RLHF stage is live in this run, or fewer than one actor would be left.
    """
    # A state file left by a killed loop names a process that no longer holds the run.
    holder = run.holder()
    now = _read(_state_file(run), "actors")
    if now is None or holder is None or holder.process != _read(_state_file(run), "process"):
        raise UserError(f"no rlhf stage is running in {run.root}: start one, then change its fleet")
    requested = _read(_request_file(run), "target")
    target = (now if requested is None else requested) + change
    if target < 1:
        raise UserError(f"{run.root} has {now} rollout actors: at least 1 must stay")
    write_json(_request_file(run), {"target": target})
    return target


def _request_file(run: RunFolder) -> Path:
    return run.root / "fleet.json"


def _state_file(run: RunFolder) -> Path:
    return run.root / "fleet_state.json"


def _read(path: Path, key: str) -> int | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[key]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove it") from error
    return int(value)
