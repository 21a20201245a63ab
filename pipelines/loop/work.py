"""The work of a round on Ray: stages, gates, comparison and promotion."""

import contextlib
from typing import Any

from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import CANARY
from cluster.run.folder import RunFolder
from cluster.run.layout import stages_of
from cluster.run.rounds import round_folder
from cluster.run.server_client import NotServedError, ask_server
from cluster.run.versions import Version, Versions
from pipelines.cli.stage_runner import connect_and_check, run_one
from pipelines.loop.rounds import Verdict
from serve.canary import set_share


class StageWork(contextlib.AbstractContextManager["StageWork"]):
    """Does the work of a round with the recipe's own stages; connects to Ray at the first need of it.

    Args:
        recipe: the whole recipe.
        run: the run folder.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self._recipe, self._run = recipe, run
        self._session = contextlib.ExitStack()
        self._connected = False

    def __exit__(self, *error: object) -> None:
        self._session.close()
        self._connected = False

    def run_stage(self, name: str) -> None:
        """Runs or resumes a stage; one that is done is skipped."""
        self._connect()
        run_one(next(stage for stage in stages_of(self._recipe) if stage.name == name), self._recipe, self._run)

    def gates(self, before: int) -> Verdict:
        """Judges the reward model of the present round against the one of another round, which is kept."""
        self._connect()
        # Imported late: it brings torch.
        from pipelines.loop.gates import run_gates

        return run_gates(self._recipe, self._run, round_folder(self._run.root, before))

    def compare(self, live: Version) -> Verdict:
        """Compares the policy of the present round with the one that is live."""
        self._connect()
        # Imported late: it brings the engines.
        from pipelines.loop.comparison import compare_policies

        return compare_policies(self._recipe, self._run, live.folder)

    def try_out(self, version: Version, share: float) -> str:
        """Makes the run's server answer a share of the requests with a policy, if it does not yet; a share of 0 ends
        that.

        Returns:
            the reason why it does not; empty if it does.
        """
        root = self._run.root
        if not share:
            set_share(self._run, version.weights, share)
            return ""
        try:
            served = ask_server(root, "versions").get(CANARY)
            if served is None:
                return "the server was started without loop.canary_share, and tries no policy"
            if served["live"] != version.weights:
                Versions(self._run, CANARY).adopt(version)
                ask_server(root, "promote", {"model": CANARY, "version": version.weights})
        except NotServedError:
            return "the run is not being served: nobody can try the policy"
        set_share(self._run, version.weights, share)
        return ""

    def promote(self, weights: str) -> dict[str, Any]:
        """Makes the run's server serve a kept policy, or the next server start with it; returns figures."""
        try:
            return ask_server(self._run.root, "promote", {"model": "policy", "version": weights})
        except NotServedError:
            Versions(self._run, "policy").make_live(weights)
            return {}

    def _connect(self) -> None:
        if not self._connected:
            connect_and_check(self._session, self._recipe, self._run)
            self._connected = True
