"""Files to read, by local path or by URI.

Arrow opens s3://, gs:// and hdfs://; fsspec opens the rest, such as hf://, where the package for it is installed.
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

# Across a network every read is a request.
_REMOTE_BUFFER = 4 << 20
# A question mark starts the options of a URI, so it is no pattern there.
_PATTERN = re.compile(r"[*\[]")
_LOCAL_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class StoredFile:
    """A file: its absolute path or its URI, its bytes, and when it was changed in ns, 0 where no one keeps that."""

    name: str
    size: int
    changed: int


def is_remote(name: str) -> bool:
    """Whether this is a URI of anything but a local file."""
    return "://" in name and not name.startswith("file://")


def absolute(name: str) -> str:
    """The path or URI in the form that means the same in every folder; file:// becomes a path."""
    if name.startswith("file://"):
        return unquote(urlsplit(name).path)
    return name if is_remote(name) else str(Path(name).absolute())


def find_files(pattern: str) -> list[StoredFile]:
    """The file of that name, all files below that folder, or all that match that glob, in the order of their names.

    Raises:
        UserError: the place cannot be reached.
    """
    if is_remote(pattern):
        return _find_remote(pattern)
    path = Path(absolute(pattern))
    names = path.rglob("*") if path.is_dir() else map(Path, glob(str(path), recursive=True))
    return [_stored(file) for file in sorted(names) if file.is_file()]


def check_can_be_written(path: Path) -> None:
    """Raises a UserError unless a file can be put there. Makes nothing."""
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: permission denied in {folder}")


def look_up(name: str) -> StoredFile:
    """What is known of one file.

    Raises:
        OSError: it is not there.
    """
    if not is_remote(name):
        return _stored(Path(name))
    from pyarrow.fs import FileType

    system, path = locate(name)
    info = system.get_file_info(path)
    if info.type != FileType.File:
        raise FileNotFoundError(f"there is no file {name}")
    return StoredFile(name, info.size or 0, info.mtime_ns or 0)


def open_file(name: str) -> BinaryIO:
    """The file, to read from any place in it.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_remote(name):
        return Path(name).open("rb")
    system, path = locate(name)
    return cast(BinaryIO, io.BufferedReader(system.open_input_file(path), _REMOTE_BUFFER))


@contextmanager
def local_file(name: str) -> Iterator[Path]:
    """A path under which the file can be read here: its own, or that of a copy that goes when the block ends."""
    if not is_remote(name):
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile(suffix=Path(name.partition("?")[0]).name) as copy, open_file(name) as file:
        shutil.copyfileobj(file, copy, _REMOTE_BUFFER)
        copy.flush()
        yield Path(copy.name)


def folder_of(pattern: str) -> str:
    """What a path, URI or glob has before its first pattern: the folder that all its matches lie in, or the file."""
    place = absolute(pattern).partition("?")[0] if is_remote(pattern) else absolute(pattern)
    found = (_PATTERN if is_remote(pattern) else _LOCAL_PATTERN).search(place)
    return place[: found.start()].rpartition("/")[0] if found else place.rstrip("/")


def place_in(folder: str, name: str) -> str:
    """A file's name as seen from what `folder_of` gave."""
    bare = name.partition("?")[0] if is_remote(name) else name
    return bare.rpartition("/")[2] if bare == folder else bare.removeprefix(f"{folder}/")


def locate(name: str) -> "tuple[FileSystem, str]":
    """The file system of a path or URI, and the path in it.

    Raises:
        UserError: nothing opens such URIs here.
    """
    # Commands that read no file start faster without them.
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


def _stored(file: Path) -> StoredFile:
    state = file.stat()
    return StoredFile(str(file.absolute()), state.st_size, state.st_mtime_ns)


def _find_remote(pattern: str) -> list[StoredFile]:
    from fsspec.utils import glob_translate
    from pyarrow.fs import FileSelector, FileType

    place, question, options = pattern.partition("?")
    folder = folder_of(pattern)
    wanted = re.compile(glob_translate(place)) if _PATTERN.search(place) else None
    try:
        system, path = locate(f"{folder}{question}{options}")
        whole = system.get_file_info(path)
        below = FileSelector(path, allow_not_found=True, recursive=True)
        infos = [whole] if whole.type == FileType.File else system.get_file_info(below)
    except OSError as error:
        raise UserError(f"cannot read {pattern}: {first_line(error)}") from error
    # Every file system writes paths in its own way: only what comes after the folder is certain.
    named = [(f"{folder}{info.path[len(path) :]}", info) for info in infos if info.type == FileType.File]
    return [
        StoredFile(f"{name}{question}{options}", info.size or 0, info.mtime_ns or 0)
        for name, info in sorted(named, key=lambda item: item[0])
        if wanted is None or wanted.fullmatch(name)
    ]
