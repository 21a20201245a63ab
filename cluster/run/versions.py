"""The versions of a model that a run's server keeps, and which of them is live.

runs/demo/served/policy/
    versions.json        the kept versions, in the order of their promotion, and the live one
    0123abcd…/           the model's files, as hard links: they stay when the stage is run again
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.run.atomic import link_file, link_folder, write_json
from cluster.run.folder import Manifest, RunFolder
from cluster.run.trail import open_round, read_trail
from cluster.run.weight_files import weight_files, weights_fingerprint

# Versions that are kept for a rollback.
KEPT = 5
# Files that an engine reads when it starts: it cannot take over weights of a model in which one of them differs.
SHAPE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Version:
    """A version: the model's folder, and the checksum of its weights, which is the version's name."""

    folder: Path
    weights: str


class Versions:
    """The versions of one model of a run, changed by one server at a time.

    Every method raises a UserError if `versions.json` is damaged.
    """

    def __init__(self, run: RunFolder, model: str) -> None:
        self._run, self._model = run, model
        self.folder = run.root / "served" / model

    def kept(self) -> list[str]:
        """Lists the names of the kept versions, in the order of their promotion."""
        return _read(self.folder)[0]

    def live(self) -> Version:
        """Returns the version that is served."""
        return live_version(self.folder)

    def start(self) -> Version:
        """Chooses the version to start a server with: the run's latest, unless it has been replaced or rolled back, or
        the loop has not decided on it yet."""
        undecided = bool(open_round(read_trail(self._run.root)))
        if self.kept() and (undecided or self._run.manifest(self._model) is None):
            return self.live()
        made = self.keep_latest()
        if made.weights not in self.kept():
            self.make_live(made.weights)
        return self.live()

    def keep_latest(self) -> Version:
        """Keeps the model that its stage made last.

        Raises:
            UserError: the stage has not finished, or is being replaced at this moment.
        """
        manifest = self._manifest()
        version = _name_of(manifest)

        def link(side: Path) -> None:
            side.mkdir()
            for file in sorted(self._run.path(self._model).iterdir()):
                if file.is_file():
                    link_file(file, side / file.name)
            if self._manifest() != manifest:
                raise UserError(f"{self._run.path(self._model)} is being made again just now: try again")

        return self._keep_as(version, link)

    def adopt(self, version: Version) -> Version:
        """Keeps a version of another model of the run under the same name."""
        return self._keep_as(version.weights, lambda side: link_folder(version.folder, side))

    def keep(self, write: Callable[[Path], object]) -> Version:
        """Keeps a model that is not the result of a finished stage.

        Args:
            write: writes the model to a folder.
        """
        side = self.folder / ".unfinished.side"
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(parents=True)
        write(side)
        version = Version(self.folder / (name := weights_fingerprint(side)), name)
        if version.folder.exists():
            shutil.rmtree(side)
        else:
            side.rename(version.folder)
        return version

    def drop(self, version: Version) -> None:
        """Removes a version, unless it was ever live."""
        if version.weights not in self.kept():
            shutil.rmtree(version.folder, ignore_errors=True)

    def find(self, name: str) -> Version:
        """Finds a version by the beginning of its name, whether or not it was ever live.

        Raises:
            UserError: no name begins so, or several do.
        """
        there = [folder.name for folder in self.folder.glob("[!.]*") if folder.is_dir()]
        found = [version for version in there if version.startswith(name)]
        if len(found) != 1:
            kept = ", ".join(version[:12] for version in self.kept())
            raise UserError(f"{name!r} names {len(found)} versions of {self._model}; kept are {kept}")
        return Version(self.folder / found[0], found[0])

    def before_live(self) -> Version:
        """Returns the version that was promoted before the live one.

        Raises:
            UserError: there is none.
        """
        kept, live = _read(self.folder)
        if kept.index(live) == 0:
            raise UserError(f"there is no version of {self._model} before {live[:12]} to go back to")
        before = kept[kept.index(live) - 1]
        return Version(self.folder / before, before)

    def make_live(self, weights: str, again: bool = False) -> None:
        """Records the version that is served, and removes the oldest beyond `KEPT`.

        Args:
            weights: the name of the version.
            again: whether this is a rollback, after which the version keeps its place in the order.
        """
        kept = self.kept() if (self.folder / "versions.json").exists() else []
        order = kept if again else [*(version for version in kept if version != weights), weights]
        stay = [version for version in order if version in order[-KEPT:] or version == weights]
        write_json(self.folder / "versions.json", {"kept": stay, "live": weights})
        for version in set(order) - set(stay):
            shutil.rmtree(self.folder / version, ignore_errors=True)

    def _keep_as(self, name: str, write: Callable[[Path], object]) -> Version:
        """Keeps a version of a known name, unless it is kept already.

        Args:
            name: the checksum of its weights.
            write: makes a folder with its files; if it raises, nothing is kept.
        """
        target = self.folder / name
        if not target.exists():
            side = self.folder / f".{name}.side"
            shutil.rmtree(side, ignore_errors=True)
            side.parent.mkdir(parents=True, exist_ok=True)
            write(side)
            side.rename(target)
        return Version(target, name)

    def _manifest(self) -> Manifest:
        return self._run.require(self._model)


def live_version(folder: Path) -> Version:
    """Finds the live version in a model's `served` folder; any other folder is the only version of its model."""
    if not (folder / "versions.json").exists():
        return Version(folder, _checksum(folder))
    _, live = _read(folder)
    return Version(folder / live, live)


def differing_files(one: Path, other: Path, names: Sequence[str] = SHAPE_FILES) -> list[str]:
    """Lists the files, by default those of a model's shape and tokenizer, that differ between two folders."""
    return [name for name in names if _content(one / name) != _content(other / name)]


def _name_of(manifest: Manifest) -> str:
    return manifest.weights or manifest.fingerprint


def _checksum(folder: Path) -> str:
    return weights_fingerprint(folder) if weight_files(folder) else "unknown"


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _read(folder: Path) -> tuple[list[str], str]:
    path = folder / "versions.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kept, live = list(state["kept"]), str(state["live"])
        kept.index(live)
    except FileNotFoundError:
        return [], ""
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove {folder} and start the server again") from error
    return kept, live
