"""The trial of a new policy on a share of the requests: one more served model, which `triptych loop` loads it into.

The share lies in a file of the run folder: every gateway of a server reads it, and one that is started again goes on.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from cluster.recipe.serve import CANARY
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder
from cluster.run.versions import Versions


def start_canary(run: RunFolder) -> Versions:
    """Returns the versions of the model on trial, of which one is live: the policy's own, until the loop tries another.

    The policy's own version has to be chosen first.
    """
    versions = Versions(run, CANARY)
    versions.make_live(versions.adopt(Versions(run, "policy").live()).weights)
    return versions


def set_share(run: RunFolder, weights: str, share: float) -> None:
    """Makes the run's server answer a share of the requests for `latest` with a version of the policy; 0 ends that."""
    if share:
        write_json(_path(run.root), {"weights": weights, "share": share})
    else:
        _path(run.root).unlink(missing_ok=True)


class CanaryShare:
    """The share of the requests for `latest` that a new policy answers instead of the live one.

    Args:
        root: the run folder; None for a server of models without a run, which tries none.
        weights: the version of every served model, as it changes.
    """

    def __init__(self, root: Path | None, weights: Mapping[str, str | None]) -> None:
        self._path, self._weights = _path(root) if root else None, weights
        self._read_at: tuple[int, ...] = ()
        self._trial: tuple[str, float] = ("", 0.0)

    def chooses(self, request: str) -> bool:
        """Tells whether a request is among the share; the same request always is, or never.

        Args:
            request: the request id; empty for a request that wants a version of its own choice.
        """
        weights, share = self._read()
        # After a restart the model on trial may have other weights, until the loop has loaded it again.
        if not request or not share or self._weights.get(CANARY) != weights:
            return False
        number = int.from_bytes(hashlib.sha256(request.encode("utf-8", "replace")).digest()[:8], "big")
        return number / 2**64 < share

    def on_trial(self) -> bool:
        """Tells whether a new policy is on trial, and loaded."""
        weights, share = self._read()
        return bool(share) and self._weights.get(CANARY) == weights

    def _read(self) -> tuple[str, float]:
        if self._path is None:
            return "", 0.0
        try:
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if version != self._read_at:
                found = json.loads(self._path.read_text(encoding="utf-8"))
                self._trial, self._read_at = (str(found["weights"]), float(found["share"])), version
        except FileNotFoundError:
            self._trial, self._read_at = ("", 0.0), ()
        return self._trial


def _path(root: Path) -> Path:
    return root / "loop" / "trial.json"
