"""A run's folder: one subfolder a stage, built to the side and renamed when whole.

    runs/demo/
        sft/                 a finished stage: its artefact, metrics.jsonl, manifest.json
        .partial/rlhf/       a stage in progress, resumed by the same command
        feedback.db          what people said; no stage ever removes it
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cluster.failures import UserError


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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON to the side, then renames: a reader sees the old file or the new one, never a half."""
    side = path.with_name(f".{path.name}.{os.getpid()}")
    with side.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, default=str)
        file.flush()
        os.fsync(file.fileno())
    side.replace(path)


class RunFolder:
    """Finds, starts and finishes the stages of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def feedback_url(self) -> str:
        return f"sqlite:///{self.root / 'feedback.db'}"

    def path(self, folder: str) -> Path:
        """Where the finished artefact lies."""
        return self.root / folder

    def partial(self, folder: str) -> Path:
        """Where the artefact is built."""
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

    def require(self, folder: str, command: str) -> Manifest:
        """The manifest of a stage that another one needs.

        Raises:
            UserError: the stage has not finished; the message names the command that makes it.
        """
        manifest = self.manifest(folder)
        if manifest is None:
            raise UserError(f"{self.path(folder)} is not there yet: run `triptych {command} RECIPE` first")
        return manifest

    def begin(self, folder: str, mark: str) -> Path:
        """Opens the folder to build a stage in: what an interrupted attempt with the same fingerprint left is kept.

        Raises:
            UserError: the run's folder cannot be written.
        """
        partial = self.partial(folder)
        try:
            marker = partial / "fingerprint"
            if partial.exists() and (not marker.exists() or marker.read_text() != mark):
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            marker.write_text(mark)
        except OSError as error:
            raise UserError(f"cannot write to {partial}: {error.strerror}") from error
        return partial

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
        old = self.root / ".partial" / f"{folder}.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.path(folder).exists():
            self.path(folder).rename(old)
        self.partial(folder).rename(self.path(folder))
        (self.path(folder) / "fingerprint").unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
