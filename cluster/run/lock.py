"""Locks of a run folder, which the kernel releases when their holder dies, and the record of who holds one."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import UserError

# Environment variables of a submitted job: its id, and the address of the job server.
JOB, JOB_SERVER = "TRIPTYCH_JOB", "TRIPTYCH_JOB_SERVER"
# Error numbers of file systems without locks, such as Lustre without the mount option flock.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Attributes:
        process: its process id.
        host: the name of its machine.
        job: its id as a Ray job, if it is one.
        job_server: the address that the job was submitted to.
    """

    process: int
    host: str = ""
    job: str = ""
    job_server: str = ""

    @classmethod
    def here(cls) -> "Holder":
        """Describes this process as a holder."""
        return cls(os.getpid(), socket.gethostname(), os.environ.get(JOB, ""), os.environ.get(JOB_SERVER, ""))

    def __str__(self) -> str:
        if self.job:
            return f"job {self.job} on host {self.host}"
        return f"process {self.process}" + (
            f" of host {self.host}" if self.host not in ("", socket.gethostname()) else ""
        )

    @property
    def advice(self) -> str:
        """Advice on how to wait for the process that holds the lock, or to end it."""
        if not self.job:
            return "wait for it, or stop it"
        at = f"{self.job} --address {self.job_server}"
        return f"`triptych attach {at}` follows it, `ray job stop {at}` ends it"


@contextmanager
def exclusive(path: Path, doing: str) -> Iterator[None]:
    """Holds the lock of a file until the block ends.

    Args:
        path: the file, which is created.
        doing: what its holder does to the folder of the file, for messages: "in use".

    Raises:
        UserError: another process holds it, or the file system has no locks.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = holder_of(path)
            who = f"{holder}: {holder.advice}" if holder else "another process, which has just ended: try again"
            raise UserError(f"{path.parent} is {doing} by {who}") from error
        except OSError as error:
            raise _without_locks(path, error) from error
        file.truncate(0)
        file.write(json.dumps(asdict(Holder.here())) + "\n")
        file.flush()
        yield


def holder_of(path: Path) -> Holder | None:
    """Reads who holds the lock of a file, or None."""
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file.read())
            except OSError as error:
                raise _without_locks(path, error) from error
    except FileNotFoundError:
        pass
    return None


def _read(text: str) -> Holder:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        # The holder has not written it yet, or is of the version before, which wrote a number alone.
        return Holder(int(text) if text.strip().isdigit() else 0)


def _without_locks(path: Path, error: OSError) -> UserError | OSError:
    if error.errno not in NO_LOCKS:
        return error
    return UserError(
        f"the file system of {path.parent} has no locks (flock: {error.strerror}), so that two commands could write "
        "there at once: mount it with them, Lustre with `-o flock`, or choose another folder for the run"
    )
