"""Finds and opens input files, by local path or by URI."""

import difflib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from cluster.errors import UserError
from cluster.run.storage.remote import (
    RemoteFile,
    StoredFile,
    absolute,
    is_remote,
    remote_files,
    remote_info,
    shown_name,
)

# Bytes a read: across a network every read is a request.
_REMOTE_BUFFER = 4 << 20
# In a URI a question mark starts the options, so it is not a wildcard there.
_REMOTE_WILDCARD = re.compile(r"[*\[]")
_LOCAL_WILDCARD = re.compile(r"[*?\[]")
# The most names of a folder that a message lists, and that are looked through for them.
_SHOWN_NAMES, _MOST_NAMES = 5, 1000


def find_files(pattern: str) -> list[StoredFile]:
    """Finds the file of that name, all files below that folder, or all matches of that glob, sorted by name.

    Raises:
        UserError: the file system cannot be read.
    """
    if is_remote(pattern):
        return _find_remote(pattern)
    path = Path(absolute(pattern))
    if path.is_file():
        # Brackets may be part of a name.
        return [_local_info(path)]
    if path.is_dir():
        names: Iterator[Path] = path.rglob("*")
    else:
        names = _below(str(path)) if "**" in path.parts else map(Path, glob(str(path)))
    return [_local_info(file) for file in sorted(names) if file.is_file()]


def no_match(pattern: str) -> str:
    """Says that no file matches a path, URI or glob, and on this machine which folder was searched and what is in it:
    the names that are most like the pattern's, first."""
    said = f"no file matches {shown_name(pattern) or 'an empty path'}"
    if is_remote(pattern):
        return said
    place = Path(absolute(pattern))
    searched = place if place.is_dir() else Path(glob_root(pattern))
    if searched == place and not place.is_dir():
        searched = place.parent
    folder = next(above for above in (searched, *searched.parents) if above.is_dir())
    wanted = place.name if folder == searched else searched.relative_to(folder).parts[0]
    missing = "" if folder == searched else f"there is no folder {folder / wanted}, and "
    try:
        with os.scandir(folder) as entries:
            names = [entry.name + "/" * entry.is_dir() for entry in islice(entries, _MOST_NAMES)]
    except OSError as error:
        return f"{said}: {missing}{folder} cannot be listed: {error.strerror}"
    names = sorted(name for name in names if name[0] != ".")
    names.sort(key=lambda name: difflib.SequenceMatcher(None, name.rstrip("/"), wanted).ratio(), reverse=True)
    more = len(names) - _SHOWN_NAMES
    listed = ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
    return f"{said}: {missing}the folder {folder} {f'has {listed}' if names else 'is empty'}"


def _below(pattern: str) -> Iterator[Path]:
    """Yields the files that match a pattern with `**`: each once, though a link may lead back to a folder above it."""
    from fsspec.utils import glob_translate

    wanted, root, seen = re.compile(glob_translate(pattern)), glob_root(pattern), set[str]()
    for folder, inner, names in os.walk(root, followlinks=True):
        # Sorted, so that of several ways to a folder the same one is taken every time; like the shell, `**` hides dots.
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names if name[0] != "." and wanted.fullmatch(f"{folder}/{name}"))


def require_writable(path: Path, parents: bool = False) -> None:
    """Checks that a file can be created at a path, without creating it.

    Args:
        path: the path of the file.
        parents: whether missing folders above it will be made.

    Raises:
        UserError: the path is a folder or a device, or its parent is missing or not writable.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is a device or a pipe, which a file would replace; name a file")
    if parents:
        folder = next(above for above in path.absolute().parents if above.exists())
    if not folder.is_dir() and folder.exists():
        raise UserError(f"cannot write {path}: {folder} is not a folder")
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: permission denied in {folder}")


def file_info(name: str) -> StoredFile:
    """Reads size and time of change of a file.

    Raises:
        OSError: there is no such file.
        StorageError: the storage of a URI does not answer.
    """
    return remote_info(name) if is_remote(name) else _local_info(Path(name))


def open_file(name: str) -> BinaryIO:
    """Opens a file for reading, seekable.

    Raises:
        OSError: it cannot be opened.
        StorageError: the storage of a URI does not answer.
    """
    return (
        cast(BinaryIO, io.BufferedReader(RemoteFile(name), _REMOTE_BUFFER))
        if is_remote(name)
        else Path(name).open("rb")
    )


@contextmanager
def local_file(name: str, progress: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yields a local path of a file: its own, or that of a temporary copy that is removed when the block ends.

    Args:
        progress: called after every few megabytes copied.
    """
    if not is_remote(name):
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile(suffix=Path(name.partition("?")[0]).name) as copy, open_file(name) as file:
        while piece := file.read(_REMOTE_BUFFER):
            copy.write(piece)
            progress()
        copy.flush()
        yield Path(copy.name)


def glob_root(pattern: str) -> str:
    """Returns the longest folder that all matches of a path, URI or glob lie in; without wildcards, the path itself."""
    place = absolute(pattern).partition("?")[0] if is_remote(pattern) else absolute(pattern)
    found = (_REMOTE_WILDCARD if is_remote(pattern) else _LOCAL_WILDCARD).search(place)
    return place[: found.start()].rpartition("/")[0] if found else place.rstrip("/")


def relative_name(folder: str, name: str) -> str:
    """Returns a file's name relative to a result of `glob_root`."""
    bare = name.partition("?")[0] if is_remote(name) else name
    return bare.rpartition("/")[2] if bare == folder else bare.removeprefix(f"{folder}/")


def _local_info(file: Path) -> StoredFile:
    state = file.stat()
    return StoredFile(str(file.absolute()), state.st_size, state.st_mtime_ns)


def _find_remote(pattern: str) -> list[StoredFile]:
    from fsspec.utils import glob_translate

    place, question, options = pattern.partition("?")
    folder = glob_root(pattern)
    wanted = re.compile(glob_translate(place)) if _REMOTE_WILDCARD.search(place) else None
    found = remote_files(f"{folder}{question}{options}")
    return [file for inner, file in found if wanted is None or wanted.fullmatch(f"{folder}{inner}")]
