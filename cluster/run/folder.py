"""A run's folder: one subfolder a stage, built to the side and renamed when whole.

runs/demo/
    recipe.yaml          the recipe of the last command, every default written out
    sft/                 a finished stage: its artifact, metrics.jsonl, manifest.json
    .partial/rlhf/       a stage in progress, resumed by the same command
    feedback.db          what people said; no stage ever removes it
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cluster.errors import UserError
from cluster.run.atomic import write_json, write_text
from cluster.run.layout import command_of

# What a stage needs only while it is built, such as checkpoints: it goes when the stage is whole.
SCRATCH = "scratch"


@dataclass(frozen=True)
class Manifest:
    """What a finished stage was made from and what came out."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    version: str
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


def fingerprint(value: Any) -> str:
    """A short hash of any JSON value; equal values give equal hashes."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def file_fingerprint(path: Path) -> str:
    """xxh3-128 of a file's bytes, read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class RunFolder:
    """Finds, starts and finishes the stages of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def feedback_url(self) -> str:
        """Where the people's judgements are: a database in the folder, unless the file `feedback.url` names another.

        A file and not a field of the recipe, which every manifest repeats: the address may hold a password.
        """
        named = self.root / "feedback.url"
        return named.read_text(encoding="utf-8").strip() if named.exists() else f"sqlite:///{self.root / 'feedback.db'}"

    @property
    def recipe_path(self) -> Path:
        """The recipe of the last command, every default written out."""
        return self.root / "recipe.yaml"

    def path(self, folder: str) -> Path:
        """Where the finished artifact lies."""
        return self.root / folder

    def partial(self, folder: str) -> Path:
        """Where the artifact is built."""
        return self.root / ".partial" / folder

    def manifest(self, folder: str) -> Manifest | None:
        """The manifest of a finished stage, or None.

        Raises:
            UserError: there is one and it is damaged.
        """
        path = self.path(folder) / "manifest.json"
        try:
            return Manifest(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove {path.parent} to build it again") from error

    def require(self, folder: str) -> Manifest:
        """The manifest of a finished stage that another one needs, by the subfolder that it fills.

        Raises:
            UserError: the stage has not finished; the message names the command that makes it.
        """
        manifest = self.manifest(folder)
        if manifest is None:
            raise UserError(f"{self.path(folder)} is not there yet: run `triptych {command_of(folder)} RECIPE` first")
        return manifest

    def check_writable(self) -> None:
        """Raises a UserError unless the run's folder can be made or written to. Makes nothing."""
        place = next(path for path in (self.root, *self.root.parents) if path.exists())
        if not place.is_dir():
            raise UserError(f"cannot use {self.root} as the run folder: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to the run folder {self.root}: permission denied in {place}")

    def holder(self) -> int | None:
        """The process that works on this run now, or None."""
        return _holder(self.root / "lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes off this run. The system lifts the lock when its holder dies, however it dies.

        Raises:
            UserError: another process works on this run, or the folder cannot be written.
        """
        with self._alone("lock", "in use"):
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Keeps other servers off this run, in the manner of `lock`; its stages may be run meanwhile.

        Raises:
            UserError: another process serves this run, or the folder cannot be written.
        """
        with self._alone("server.lock", "being served"):
            yield

    @contextmanager
    def _alone(self, name: str, doing: str) -> Iterator[None]:
        self.check_writable()
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / name
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"{self.root} is {doing} by process {_holder(path)}: wait for it, or stop it"
                raise UserError(message) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def begin(self, folder: str, mark: str) -> Path:
        """Opens the folder to build a stage in: what an interrupted attempt with the same fingerprint left is kept.

        Raises:
            UserError: the run's folder cannot be written.
        """
        partial = self.partial(folder)
        try:
            marker = partial / "fingerprint"
            if partial.exists() and self.mark(folder) != mark:
                # The marker goes first: a removal cut short must not be taken for an attempt to resume.
                marker.unlink(missing_ok=True)
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            write_text(marker, mark)
        except OSError as error:
            raise UserError(f"cannot write to {partial}: {error.strerror}") from error
        return partial

    def mark(self, folder: str) -> str | None:
        """The fingerprint that an interrupted attempt was begun with, or None if there is no such attempt."""
        try:
            return (self.partial(folder) / "fingerprint").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def commit(self, folder: str, manifest: Manifest) -> None:
        """Writes the manifest and puts the stage in its place. A kill in between is mended by `recover`."""
        partial = self.partial(folder)
        write_json(partial / "manifest.json", asdict(manifest))
        self._replace(folder)

    def recover(self, folder: str) -> None:
        """Finishes a commit that was interrupted after its manifest was written."""
        if (self.partial(folder) / "manifest.json").exists():
            self._replace(folder)

    def _replace(self, folder: str) -> None:
        shutil.rmtree(self.partial(folder) / SCRATCH, ignore_errors=True)
        old = self.root / ".partial" / f"{folder}.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.path(folder).exists():
            self.path(folder).rename(old)
        self.partial(folder).rename(self.path(folder))
        (self.path(folder) / "fingerprint").unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _holder(lock: Path) -> int | None:
    """The process that holds a lock file, or None."""
    try:
        with lock.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
    except FileNotFoundError:
        pass
    return None
