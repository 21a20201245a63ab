"""The versions of a served adapter, which `triptych promote` and `rollback` change as they do a model's."""

import shutil
from pathlib import Path

from cluster.errors import UserError
from cluster.run.atomic import write_text
from cluster.run.folder import RunFolder
from cluster.run.versions import Version, Versions
from serve.replica.lora import CONFIG, WEIGHTS, adapter_checksum, require_adapter

# The checksum of the recipe's folder when a server last started with it.
STARTED_WITH = "recipe.version"


class AdapterVersions(Versions):
    """The versions of one adapter. Its files come from a folder of the user's, and not from a stage of the run.

    Args:
        run: the run folder, which keeps the versions.
        name: the name that clients use.
        source: the folder that the recipe names.
    """

    def __init__(self, run: RunFolder, name: str, source: Path) -> None:
        super().__init__(run, name)
        self._name, self._source = name, source

    def start(self) -> Version:
        """Chooses the version to start a server with: the live one, unless the recipe's folder has changed since a
        server last started with it.

        Raises:
            UserError: the recipe's folder holds no adapter.
        """
        latest = self.keep_latest().weights
        if self.started_with() != latest or not self.kept():
            self.make_live(latest)
            write_text(self.folder / STARTED_WITH, latest)
        return self.live()

    def started_with(self) -> str:
        """Returns the version that the recipe's folder had when a server last started; empty before the first start."""
        file = self.folder / STARTED_WITH
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def keep_latest(self) -> Version:
        """Keeps the adapter that lies in the recipe's folder.

        Raises:
            UserError: there is none.
        """
        return self.keep_folder(self._source)

    def keep_folder(self, source: Path) -> Version:
        """Keeps the adapter that lies in a folder.

        The files are copied and not linked: PEFT writes a retrained adapter into the same files.

        Raises:
            UserError: the folder holds no adapter, or it is written to at this moment.
        """
        name = require_adapter(self._name, source)

        def copy(side: Path) -> None:
            side.mkdir()
            for file in (CONFIG, WEIGHTS):
                shutil.copyfile(source / file, side / file)
            if adapter_checksum(side) != name:
                raise UserError(f"{source} is being written just now: try again")

        return self._keep_as(name, copy)
