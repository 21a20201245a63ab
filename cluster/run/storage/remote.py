"""Reads files of other machines by URI, and tells a storage that fails from a file that is damaged.

Arrow opens s3://, gs:// and hdfs://; fsspec opens other schemes, such as hf://, where the package for it is installed.
A request that fails is repeated with growing pauses. The last one raises a `StorageError`, which no reader of a format
takes for damage.
"""

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from cluster.errors import StorageError, UserError, first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """A file: its absolute path or URI, its size in bytes, and its time of change in ns (0 where that is unknown)."""

    name: str
    size: int
    changed: int


# Pauses between the attempts of a request. Object stores ask for growing pauses after 500, 503 and 429; a 403 passes
# when credentials are renewed.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
# User and password of a URI, and the options behind its path: keys, signatures and tokens.
_USER = re.compile(r"(?<=://)[^\s/?#@'\"]*@")
_OPTIONS = re.compile(r"((?<=://)[^\s?'\"]*)\?[^\s'\")>]*")
# In these schemes the part before the @ names a container.
_CONTAINERS = re.compile(r"\b(?:abfss?|wasbs?)://[^\s/:@]*@")


def is_remote(name: str) -> bool:
    """Tells whether a name is a URI of anything but a local file."""
    return "://" in name and not name.startswith("file://")


def absolute(name: str) -> str:
    """Makes a path absolute. file:// becomes a path, other URIs stay as they are."""
    if name.startswith("file://"):
        return unquote(urlsplit(name).path)
    return name if is_remote(name) else str(Path(name).absolute())


def without_credentials(text: str) -> str:
    """Removes user, password and options from every URI in a text, so that it can be shown and stored."""
    if "://" not in text:
        return text
    kept = _OPTIONS.sub(r"\1", text)
    return "".join(
        piece if _CONTAINERS.fullmatch(piece) else _USER.sub("", piece)
        for piece in re.split(rf"({_CONTAINERS.pattern})", kept)
    )


def shown_name(name: str) -> str:
    """Returns a name that can be shown and stored: without credentials, and with bytes that are not UTF-8 escaped."""
    return without_credentials(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


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
            raise UserError(without_credentials(f"cannot open {name}: {error}")) from error
        return PyFileSystem(FSSpecHandler(other)), path
    # Some systems are asked while the URI is read, such as S3 for the region of a bucket.
    except OSError as error:
        raise UserError(without_credentials(f"cannot open {name}: {first_line(error)}")) from error
    return system, path


def requested(name: str, what: Callable[[], T]) -> T:
    """Calls a function that asks a storage for something, and again after each of `PAUSES` if that fails.

    Raises:
        FileNotFoundError: the storage has no such file.
        StorageError: the last attempt failed too.
    """
    for pause in (*PAUSES, None):
        try:
            return what()
        # File systems are plug-ins that raise exceptions of their own: those of aiohttp and httpx are no OSError.
        except Exception as error:
            if isinstance(error, FileNotFoundError) and _is_missing(error):
                raise FileNotFoundError(f"there is no file {without_credentials(name)}") from None
            if pause is None:
                tried = f"tried {len(PAUSES) + 1} times; the same command reads it again"
                cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
                said = f"cannot read {name}: {type(cause).__name__}: {first_line(cause)} ({tried})"
                raise StorageError(without_credentials(said)) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_missing(error: BaseException | None) -> bool:
    """Tests that nothing but the file's absence caused an error: fsspec also takes an answer of 403 or 500 for it."""
    while error is not None:
        if not isinstance(error, FileNotFoundError) and _status(error) not in (404, 410):
            return False
        error = error.__cause__
    return True


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status in an exception of aiohttp, httpx or requests."""
    return getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)


def remote_info(name: str) -> StoredFile:
    """Reads size and time of change of a file of another machine.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage does not answer.
        UserError: the storage does not tell the size, without which a cut answer would pass for the end of the file.
    """
    system, path = filesystem_of(name)
    if (info := _info(name, system, path)) is None:
        raise FileNotFoundError(f"there is no file {without_credentials(name)}")
    return _sized(name, info)


def remote_files(name: str) -> list[tuple[str, StoredFile]]:
    """Lists the file of that URI, or all files below that folder, each with its path relative to the URI.

    Raises:
        StorageError: the storage does not answer.
        UserError: the storage does not tell the size of a file.
    """
    from pyarrow.fs import FileInfo, FileSelector, FileType

    system, path = filesystem_of(name)
    place, question, options = name.partition("?")
    try:
        whole = _info(name, system, path)
    except FileNotFoundError:
        whole = None
    if whole is not None:
        return [("", _sized(name, whole))]
    other = _fsspec(system)

    def listed() -> list[FileInfo]:
        if other is None:
            return system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        found = other.find(path, detail=True, **_strict(other))
        return [_file_info(inner, info) for inner, info in found.items()]

    try:
        infos: list[FileInfo] = requested(name, listed)
    except FileNotFoundError:
        return []
    named = [
        (info.path.removeprefix("/")[len(path.strip("/")) :].rstrip("/"), info)
        for info in infos
        if info.type == FileType.File
    ]
    return [
        (inner, _sized(f"{place.rstrip('/')}{inner}{question}{options}", info))
        for inner, info in sorted(named, key=lambda pair: pair[0])
    ]


def _info(name: str, system: "FileSystem", path: str) -> "FileInfo | None":
    """Reads the information about a file; None if the path is a folder or nothing."""
    other = _fsspec(system)
    info = requested(name, lambda: _file_info(path, other.info(path)) if other else system.get_file_info(path))
    return info if info.is_file else None


def _fsspec(system: "FileSystem") -> Any:
    """Returns the fsspec file system behind an Arrow file system, or None.

    Arrow asks it through methods that return False for an error: a storage that fails would have no file.
    """
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    if isinstance(system, PyFileSystem) and isinstance(system.handler, FSSpecHandler):
        return system.handler.fs
    return None


def _strict(other: Any) -> dict[str, str]:
    """Returns the argument with which fsspec's own walk through folders fails for one that cannot be listed.

    Its default is to take such a folder for an empty one. Systems with a `find` of their own have no such argument.
    """
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    walks = getattr(type(other), "_find", None) is AsyncFileSystem._find or type(other).find is AbstractFileSystem.find
    return {"on_error": "raise"} if walks else {}


def _file_info(path: str, info: dict[str, Any]) -> "FileInfo":
    from pyarrow.fs import FileInfo, FileType

    kind = FileType.File if info["type"] == "file" else FileType.Directory
    return FileInfo(path, kind, size=info.get("size"), mtime=info.get("mtime"))


def _sized(name: str, info: "FileInfo") -> StoredFile:
    if info.size is None:
        again = requested(name, lambda: _fsspec(filesystem_of(name)[0]).info(filesystem_of(name)[1]))
        if again.get("size") is None:
            shown = without_credentials(name)
            raise UserError(f"cannot read {shown}: its server does not tell its size; fetch the file first")
        info = _file_info(info.path, again)
    return StoredFile(name, info.size, info.mtime_ns or 0)


class RemoteFile(io.RawIOBase):
    """A file of another machine, seekable. An answer that ends before the end of the file is asked for again.

    Opening and reading raise a `StorageError` if the storage does not answer, and what `remote_info` raises.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._position = name, 0
        self._size = remote_info(name).size
        self._system, self._path = filesystem_of(name)
        self._file = requested(name, self._opened)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data = requested(self._name, lambda: self._read(wanted))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _opened(self) -> Any:
        other = _fsspec(self._system)
        return other.open(self._path, mode="rb") if other else self._system.open_input_file(self._path)

    def _read(self, wanted: int) -> "bytes | bytearray":
        whole = False
        try:
            if self._file.tell() != self._position:
                self._file.seek(self._position)
            data = _read_whole(self._file, wanted)
            whole = len(data) == wanted
        finally:
            if not whole:
                # Clients keep the state of the broken connection, and a part of the answer, in the open file.
                self._file = self._opened()
        if not whole:
            end = self._position + len(data)
            raise ConnectionError(f"the answer ends at byte {end:,} of {self._size:,}")
        return data


def _read_whole(file: Any, wanted: int) -> "bytes | bytearray":
    """Reads so many bytes, or fewer if the answer has fewer.

    Arrow's client of S3 does not tell that an answer is shorter than was asked for: the rest of its buffer is what it
    was before. The last byte is thus set to one that text does not have. Data that ends with it are read again over
    another one.
    """
    from pyarrow import NativeFile

    if not isinstance(file, NativeFile):
        found: bytes = file.read(wanted)
        return found
    data, start = bytearray(wanted), file.tell()
    for last in (0xFF, 0xFE):
        data[-1] = last
        file.seek(start)
        count = file.readinto(data)
        if count < wanted:
            return data[:count]
        if data[-1] != last:
            return data
    raise ConnectionError(f"the answer from byte {start:,} on is shorter than the {wanted:,} bytes asked for")


@contextmanager
def as_storage_failure(name: str) -> Iterator[None]:
    """Raises a `StorageError` for an error of the operating system while a local file is read.

    Raises:
        StorageError: a read failed, as on a disk or network mount that is gone.
    """
    try:
        yield
    except OSError as error:
        # Decoders raise an OSError without a number for damage.
        if error.errno is None or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise StorageError(f"cannot read {name}: {error.strerror}; the same command reads it again") from error
