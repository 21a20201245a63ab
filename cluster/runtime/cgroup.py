"""The limits that a container sets on a process's cores and memory, as Linux's control groups hold them."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cpu_limit(root: Path = ROOT, own: Path = OWN) -> float | None:
    """Returns the number of cores that this process may use at most; None without a limit."""
    found = []
    for folder in _groups(root, own, "cpu"):
        # Version 2 has both numbers in one file, "max" for no limit; version 1 has -1 for none.
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def free_memory(root: Path = ROOT, own: Path = OWN) -> float | None:
    """Returns the bytes that this process may still take up; None without a limit.

    Pages of files that nobody uses now count as free: the kernel gives them back when memory is short.
    """
    found = []
    for folder in _groups(root, own, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, held = _read(folder / limit), _read(folder / used)
            if most.isdigit() and held.isdigit():
                lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
                cached = sum(int(words[1]) for words in lines if words[0] in ("inactive_file", "total_inactive_file"))
                found.append(max(0.0, int(most) - int(held) + cached))
    return min(found, default=None)


def _groups(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's group and of those around it, of either version of control groups."""
    for line in _read(own).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = next((path for path in (root / controllers, root / controller) if path.is_dir()), root)
        inner = base / name.strip("/")
        # In a container the name may be that of the host, which cannot be seen from inside.
        yield from {base, *(folder for folder in (inner, *inner.parents) if base in folder.parents)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
