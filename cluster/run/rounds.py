"""The rounds of a run: the artifacts of each round of judgements are kept, numbered, and can be brought back.

runs/demo/
    preferences/ reward/ policy/ report/    the present round, where every stage and page looks for it
    rounds/1/preferences/ …                 an earlier round whole, as hard links; it is never changed

A round is kept before the first of its subfolders is replaced, by one rename: after a kill at any moment it is there or
it is not, and then nothing of it was replaced. A run that was made before there were rounds is in its first one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.run.atomic import link_folder, write_json
from cluster.run.layout import ROUND_FOLDERS


def round_folder(root: Path, number: int) -> Path:
    """Returns the folder of an earlier round, with the subfolders of a run."""
    return root / "rounds" / str(number)


def kept_rounds(root: Path) -> list[int]:
    """Lists the numbers of the rounds that are kept, in order."""
    return sorted(int(folder.name) for folder in (root / "rounds").glob("[0-9]*"))


def next_round(root: Path) -> int:
    """Returns the number of a round that is made now."""
    return max(kept_rounds(root), default=0) + 1


def present_round(root: Path) -> int:
    """Returns the number of the round whose subfolders are in the run folder: a kept one, or one that is being made."""
    return _kept_as(root, present_folders(root)) or next_round(root)


def round_in_the_making(root: Path, replaced: str) -> int:
    """Returns the number of the round that a stage belongs to once it has replaced the one in this subfolder."""
    present = present_folders(root)
    kept = replaced not in present or _kept_as(root, present) is not None
    return next_round(root) + (not kept)


def present_folders(root: Path) -> dict[str, bytes]:
    """Reads the manifests of the present round: those of the subfolders that were made from one another."""
    found: dict[str, bytes] = {}
    fingerprints: dict[str, str] = {}
    for name in ROUND_FOLDERS:
        content = _manifest(root / name)
        manifest = _parsed(content)
        before = {key: made for key, made in manifest.get("inputs", {}).items() if key in ROUND_FOLDERS}
        if content is not None and all(fingerprints.get(key) == made for key, made in before.items()):
            found[name], fingerprints[name] = content, manifest.get("fingerprint", "")
    return found


def keep_round(root: Path, replaced: str) -> int | None:
    """Keeps the present round before one of its subfolders is replaced.

    Args:
        root: the run folder.
        replaced: the subfolder. One that is stale belongs to a round that was kept when it became so.

    Returns:
        the number of the round that the subfolder belongs to; the newest kept one where there is no such subfolder yet.
    """
    content = _manifest(root / replaced)
    present = present_folders(root)
    if replaced in present and _kept_as(root, present) is None:
        _keep(root, present)
    kept = [number for number in kept_rounds(root) if _manifest(round_folder(root, number) / replaced) == content]
    return max(kept or kept_rounds(root), default=None)


def restore_round(root: Path, number: int) -> None:
    """Brings a kept round back into the run folder; the present one is kept too. The run must be locked.

    Raises:
        UserError: no round of that number is kept.
    """
    if number not in kept_rounds(root):
        known = ", ".join(map(str, kept_rounds(root))) or "none"
        raise UserError(f"{root} keeps no round {number}; kept are {known}")
    present = present_folders(root)
    if present and _kept_as(root, present) is None:
        _keep(root, present)
    write_json(_intent(root), {"round": number})
    finish_restore(root)


def finish_restore(root: Path) -> None:
    """Completes a restore that a kill interrupted, if there is one."""
    try:
        number = int(json.loads(_intent(root).read_text(encoding="utf-8"))["round"])
    except FileNotFoundError:
        return
    for name in ROUND_FOLDERS:
        source, target, side = round_folder(root, number) / name, root / name, root / ".partial" / f"{name}.restored"
        if _manifest(source) == _manifest(target):
            continue
        shutil.rmtree(side, ignore_errors=True)
        if source.exists():
            link_folder(source, side)
        replace_folder(side, target, root / ".partial" / f"{name}.old")
    _intent(root).unlink()


def replace_folder(new: Path, target: Path, old: Path) -> None:
    """Moves a folder to `target`, and removes the folder that was there.

    Args:
        new: the folder to move; if it does not exist, the one at `target` is only removed.
        target: the place to move it to.
        old: the place of the former folder while it is being removed.
    """
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    if new.exists():
        new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _intent(root: Path) -> Path:
    return root / ".partial" / "restore.json"


def _keep(root: Path, present: dict[str, bytes]) -> None:
    number = next_round(root)
    side = root / "rounds" / f".{number}.side"
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    for name in present:
        link_folder(root / name, side / name)
    side.rename(round_folder(root, number))


def _kept_as(root: Path, present: dict[str, bytes]) -> int | None:
    """Finds the newest kept round that holds all these subfolders."""
    return next(
        (
            number
            for number in reversed(kept_rounds(root))
            if all(_manifest(round_folder(root, number) / name) == content for name, content in present.items())
        ),
        None,
    )


def _manifest(folder: Path) -> bytes | None:
    try:
        return (folder / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        # The stage that needs this manifest reports that it is damaged.
        return {}
    return found if isinstance(found, dict) else {}
