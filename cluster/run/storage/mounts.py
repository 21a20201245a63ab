"""The kind of file system that a path lies on."""

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# File systems that several machines may use at once, by the names that Linux gives them. Those of user space (FUSE) are
# named after their program.
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|lustre|beegfs\w*|gpfs|ceph|glusterfs|afs|9p|virtiofs|ocfs2|gfs2|orangefs|pvfs2|wekafs|juicefs"
    r"|fuse\.(?!(fuseblk|ntfs|overlayfs|fuse-overlayfs|lxcfs|portal|gvfsd)[\w-]*$).*"
)


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Returns the name of the file system that a path lies on, or would lie on; empty if that is not known."""
    place, found = path.resolve(), ("", "")
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        # Blanks in names are octal numbers.
        _, folder, kind, *_ = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in line.split())
        # The last of several mounts of one folder hides those before.
        if place.is_relative_to(folder) and len(folder) >= len(found[0]):
            found = (folder, kind)
    return found[1]


def is_network(path: Path, mounts: Path = MOUNTS) -> bool:
    """Tells whether a path lies on a file system that other machines may use at the same time."""
    return NETWORK.fullmatch(file_system(path, mounts)) is not None
