"""Writes of files: atomic, and private where people's words or keys are in them.

Atomic: a reader sees the old file or the new one, never a half, also after a kill or a power cut.

Folders that replace older ones are swapped where they are managed: `RunFolder`, `Versions` and the checkpoints each
have a rule of their own for the old folder, and `recover` of their own for a kill between the two renames.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside `path` to write to, and renames it to `path` when the block ends without an error.

    The block may write a file there, or a folder if `path` does not exist yet. The parent folder is created. All bytes
    are on disk before the rename, so that `path` is whole even after a power cut.

    Raises:
        UserError: nothing can be created there, such as in a folder of another user.
    """
    side = path.with_name(f".{path.name}.side")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield side
        for written in (side, *side.rglob("*")):
            descriptor = os.open(written, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        side.replace(path)
    except OSError as error:
        # Errors of other files, which the block may read, pass on; a full disk has a message of its own.
        own = isinstance(error.filename, str | Path) and Path(error.filename) in {side, path, *path.parents}
        if not own or error.errno == errno.ENOSPC:
            raise
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def make_private(path: Path) -> None:
    """Makes a file readable and writable to its owner alone; creates it if it is not there.

    Another user's file is left as it is: its owner decides.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with suppress(PermissionError):
        path.chmod(0o600)


def link_file(source: Path | str, target: Path | str) -> None:
    """Makes a hard link to a file that will not be changed, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_folder(source: Path, target: Path) -> None:
    """Makes a folder with the files of another, in the same subfolders, by `link_file`; the target must not exist."""
    shutil.copytree(source, target, copy_function=link_file)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    with atomic_write(path) as side:
        side.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically; what JSON does not know is written as its `str`."""
    write_text(path, json.dumps(value, indent=2, default=str))
