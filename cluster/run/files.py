"""Input files, by local path or by URI.

Arrow opens s3://, gs:// and hdfs://; fsspec opens other schemes, such as hf://, where the package for it is installed.
"""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from cluster.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# Bytes a read: across a network every read is a request.
_REMOTE_BUFFER = 4 << 20
# In a URI a question mark starts the options, so it is not a wildcard there.
_REMOTE_WILDCARD = re.compile(r"[*\[]")
_LOCAL_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class StoredFile:
    """A file: its absolute path or URI, its size in bytes, and its time of change in ns (0 where that is unknown)."""

    name: str
    size: int
    changed: int


def is_remote(name: str) -> bool:
    """Tells whether a name is a URI of anything but a local file."""
    return "://" in name and not name.startswith("file://")


def absolute(name: str) -> str:
    """Makes a path absolute. file:// becomes a path, other URIs stay as they are."""
    if name.startswith("file://"):
        return unquote(urlsplit(name).path)
    return name if is_remote(name) else str(Path(name).absolute())


def find_files(pattern: str) -> list[StoredFile]:
    """Finds the file of that name, all files below that folder, or all matches of that glob, sorted by name.

    Raises:
        UserError: the file system cannot be read.
    """
    if is_remote(pattern):
        return _find_remote(pattern)
    path = Path(absolute(pattern))
    names = path.rglob("*") if path.is_dir() else map(Path, glob(str(path), recursive=True))
    return [_local_info(file) for file in sorted(names) if file.is_file()]


def require_writable(path: Path) -> None:
    """Checks that a file can be created at a path, without creating it.

    Raises:
        UserError: the path is a folder, or its parent is missing or not writable.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: permission denied in {folder}")


def file_info(name: str) -> StoredFile:
    """Reads size and time of change of a file.

    Raises:
        OSError: there is no such file.
    """
    if not is_remote(name):
        return _local_info(Path(name))
    from pyarrow.fs import FileType

    system, path = filesystem_of(name)
    info = system.get_file_info(path)
    if info.type != FileType.File:
        raise FileNotFoundError(f"there is no file {name}")
    return StoredFile(name, info.size or 0, info.mtime_ns or 0)


def open_file(name: str) -> BinaryIO:
    """Opens a file for reading, seekable.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_remote(name):
        return Path(name).open("rb")
    system, path = filesystem_of(name)
    return cast(BinaryIO, io.BufferedReader(system.open_input_file(path), _REMOTE_BUFFER))


@contextmanager
def local_file(name: str) -> Iterator[Path]:
    """Yields a local path of a file: its own, or that of a temporary copy that is removed when the block ends."""
    if not is_remote(name):
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile(suffix=Path(name.partition("?")[0]).name) as copy, open_file(name) as file:
        shutil.copyfileobj(file, copy, _REMOTE_BUFFER)
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


def filesystem_of(name: str) -> "tuple[FileSystem, str]":
    """Finds the file system of a path or URI, and the path in it.

    Raises:
        UserError: no installed package opens such URIs.
    """
    # Imported late: commands that read no file start faster without them.
    from fsspec.core import url_to_fs
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

    if not is_remote(name):
        return LocalFileSystem(), absolute(name)
    try:
        system, path = FileSystem.from_uri(name)
    except ArrowInvalid:
        try:
            other, path = url_to_fs(name)
        except (ValueError, ImportError) as error:
            raise UserError(f"cannot open {name}: {error}") from error
        return PyFileSystem(FSSpecHandler(other)), path
    return system, path


def _local_info(file: Path) -> StoredFile:
    state = file.stat()
    return StoredFile(str(file.absolute()), state.st_size, state.st_mtime_ns)


def _find_remote(pattern: str) -> list[StoredFile]:
    from fsspec.utils import glob_translate
    from pyarrow.fs import FileSelector, FileType

    place, question, options = pattern.partition("?")
    folder = glob_root(pattern)
    wanted = re.compile(glob_translate(place)) if _REMOTE_WILDCARD.search(place) else None
    try:
        system, path = filesystem_of(f"{folder}{question}{options}")
        whole = system.get_file_info(path)
        below = FileSelector(path, allow_not_found=True, recursive=True)
        infos = [whole] if whole.type == FileType.File else system.get_file_info(below)
    except OSError as error:
        raise UserError(f"cannot read {pattern}: {first_line(error)}") from error
    # File systems differ in how they write a path: only the part behind the folder is the same.
    named = [(f"{folder}{info.path[len(path) :]}", info) for info in infos if info.type == FileType.File]
    return [
        StoredFile(f"{name}{question}{options}", info.size or 0, info.mtime_ns or 0)
        for name, info in sorted(named, key=lambda item: item[0])
        if wanted is None or wanted.fullmatch(name)
    ]
