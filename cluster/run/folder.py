"""The run folder: one subfolder a stage, built aside and renamed when whole.

runs/demo/
    recipe.yaml          the recipe of the last command, every default written out
    sft/                 a finished stage: its artifact, metrics.jsonl, manifest.json
    .partial/rlhf/       a stage in progress, resumed by the same command
    rounds/1/            earlier preferences, reward model, policy and report; see `cluster.run.rounds`
    feedback.db          human feedback; no stage ever removes it
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from pydantic import TypeAdapter, ValidationError

from cluster.errors import UserError
from cluster.run.atomic import write_json, write_text
from cluster.run.layout import ROUND_FOLDERS, command_of
from cluster.run.lock import Holder, exclusive, holder_of
from cluster.run.rounds import finish_restore, keep_round, next_round, replace_folder

# The subfolder for files that a stage needs only while it is built, such as checkpoints: removed when it is whole.
SCRATCH = "scratch"
# The entry of a manifest's inputs for the judgements that the stage took in; all others are subfolders.
JUDGEMENTS = "judgements"


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage: its configuration and inputs, the time it took, its metrics and its weights.

    A stage of a round also has the number of the `round` in which it was made, and of the round whose result it
    replaced, `round_before`. Both are None elsewhere, and where the stage was made before there were rounds.
    """

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    version: str
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    round: int | None = None
    round_before: int | None = None

    @property
    def made_from(self) -> dict[str, str]:
        """The fingerprints of the stages that it was made from, by their subfolders."""
        return {name: made for name, made in self.inputs.items() if name != JUDGEMENTS}


@cache
def _manifest_type() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def fingerprint(value: Any) -> str:
    """Hashes a JSON value with xxh3-128; equal values have equal hashes."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def file_fingerprint(path: Path) -> str:
    """Hashes the bytes of a file with xxh3-128, without holding them all."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class RunFolder:
    """Finds, starts and finishes the stages of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def feedback_url(self) -> str:
        """The URL of the feedback database: SQLite in the run folder, unless the file `feedback.url` names another.

        A file and not a field of the recipe, which every manifest repeats: the URL may hold a password.
        """
        file = self.root / "feedback.url"
        return file.read_text(encoding="utf-8").strip() if file.exists() else f"sqlite:///{self.root / 'feedback.db'}"

    @property
    def recipe_path(self) -> Path:
        """The recipe of the last command, every default written out."""
        return self.root / "recipe.yaml"

    def path(self, folder: str) -> Path:
        """Returns the subfolder of a finished stage."""
        return self.root / folder

    def partial(self, folder: str) -> Path:
        """Returns the folder in which a stage is built."""
        return self.root / ".partial" / folder

    def manifest(self, folder: str) -> Manifest | None:
        """Reads the manifest of a finished stage; None if it has not finished.

        Raises:
            UserError: the manifest is damaged.
        """
        path = self.path(folder) / "manifest.json"
        try:
            return _manifest_type().validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where}: {first['msg']}" if where else first["msg"]
        except OSError as error:
            reason = error.strerror or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); remove {path.parent} to build it again")

    def require(self, folder: str) -> Manifest:
        """Reads the manifest of a stage that another one needs, by its subfolder.

        Raises:
            UserError: the stage has not finished; the message names the command that makes it.
        """
        manifest = self.manifest(folder)
        if manifest is None:
            raise UserError(f"{self.path(folder)} is not there yet: run `triptych {command_of(folder)} RECIPE` first")
        return manifest

    def create(self) -> None:
        """Creates the folder for its owner alone, since it holds people's words and keys. A folder that exists keeps
        its permissions."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check_writable(self) -> None:
        """Checks that the run folder can be created or written to, without creating it.

        Raises:
            UserError: it cannot.
        """
        try:
            place = next(path for path in (self.root, *self.root.parents) if path.exists())
        except OSError as error:
            raise UserError(f"cannot use {self.root} as the run folder: {error.strerror}") from error
        if not place.is_dir():
            raise UserError(f"cannot use {self.root} as the run folder: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to the run folder {self.root}: permission denied in {place}")

    def holder(self) -> Holder | None:
        """Reads which process works on this run now, or None."""
        return holder_of(self.root / "lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from working on this run. The kernel releases the lock when its holder dies.

        A `restore_round` that was interrupted is completed first.

        Raises:
            UserError: another process works on this run, or the folder cannot be written.
        """
        with self._exclusive("lock", "in use"):
            finish_restore(self.root)
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Keeps other processes from serving this run; stages may run meanwhile.

        Raises:
            UserError: another process serves this run, or the folder cannot be written.
        """
        with self._exclusive("server.lock", "being served"):
            yield

    @contextmanager
    def _exclusive(self, name: str, doing: str) -> Iterator[None]:
        self.check_writable()
        try:
            self.create()
        except OSError as error:
            raise UserError(f"cannot create the run folder {self.root}: {error.strerror}") from error
        with exclusive(self.root / name, doing):
            yield

    def begin(self, folder: str, digest: str) -> Path:
        """Opens the folder to build a stage in. It keeps an interrupted attempt with the same fingerprint alone.

        Args:
            folder: the stage's subfolder.
            digest: the fingerprint of its configuration and inputs.

        Raises:
            UserError: the run folder cannot be written.
        """
        partial = self.partial(folder)
        try:
            marker = partial / "fingerprint"
            if partial.exists() and self.partial_fingerprint(folder) != digest:
                # The marker goes first: a removal that is cut short must not pass for an attempt to resume.
                marker.unlink(missing_ok=True)
                shutil.rmtree(partial)
            self.create()
            partial.mkdir(parents=True, exist_ok=True)
            write_text(marker, digest)
        except OSError as error:
            raise UserError(f"cannot write to {partial}: {error.strerror}") from error
        return partial

    def partial_fingerprint(self, folder: str) -> str | None:
        """Reads the fingerprint of an interrupted attempt; None if there is none."""
        try:
            return (self.partial(folder) / "fingerprint").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def commit(self, folder: str, manifest: Manifest) -> None:
        """Writes the manifest and moves the stage to its place. After a kill in between, `recover` completes it.

        What was in its place is kept first, if it is of a round.
        """
        partial = self.partial(folder)
        if folder in ROUND_FOLDERS:
            before = keep_round(self.root, folder)
            manifest = replace(manifest, round=next_round(self.root), round_before=before)
        write_json(partial / "manifest.json", asdict(manifest))
        self._replace(folder)

    def recover(self, folder: str) -> None:
        """Completes a commit that was interrupted after its manifest was written."""
        if (self.partial(folder) / "manifest.json").exists():
            self._replace(folder)

    def _replace(self, folder: str) -> None:
        shutil.rmtree(self.partial(folder) / SCRATCH, ignore_errors=True)
        replace_folder(self.partial(folder), self.path(folder), self.root / ".partial" / f"{folder}.old")
        (self.path(folder) / "fingerprint").unlink(missing_ok=True)
