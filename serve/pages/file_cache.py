"""A cache of the values that a page reads from files, until the files change."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class FileCache:
    """Keeps values that were made from files until a file's time of change, size or inode changes. Threads may share
    it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[Path, str], tuple[tuple[int, int, int] | None, Any]] = {}

    def made_from(self, path: Path, what: str, make: Callable[[], Any]) -> Any:
        """Returns the result of `make`, which is called again only when the file has changed.

        While one thread makes it, others wait for it instead of making it too.

        Args:
            path: of the file, which need not be there.
            what: names the value, as several may be made from one file.
            make: reads the file. Its value must not be changed.
        """
        with self._lock:
            # Taken before the file is read: a change meanwhile is noticed by the next call.
            stamp = _stamp(path)
            kept = self._kept.get((path, what))
            if kept is None or kept[0] != stamp:
                kept = self._kept[path, what] = stamp, make()
            return kept[1]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
