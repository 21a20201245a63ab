"""Changes of the weights that a server serves, one at a time, from the files of a run to every replica and gateway."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from cluster.errors import UserError
from cluster.keys import audit
from cluster.run.folder import RunFolder
from cluster.run.versions import Versions, differing_files
from serve.errors import RequestError
from serve.transport.pool import ModelEndpoint

Action = Literal["promote", "rollback"]
# Makes a version known to every gateway, and returns the names of those that did not confirm it.
Announce = Callable[[str, str], Awaitable[Sequence[str]]]


class Promotions:
    """Changes which version of a model is served. One gateway of a server has it: of two changes at once, each would
    take the other's version for the previous one.

    Args:
        run: the run whose models are served, and which has the log of changes.
        stores: the versions of every model that has some, by its name.
        models: the models by name.
        announce: makes a version known to every gateway.
    """

    def __init__(
        self,
        run: RunFolder,
        stores: Mapping[str, Versions],
        models: Mapping[str, ModelEndpoint],
        announce: Announce,
    ) -> None:
        self._run, self._stores, self._models, self._announce = run, stores, models, announce
        self._lock = asyncio.Lock()

    async def change(self, action: Action, model: str, version: str | None, by: str) -> dict[str, Any]:
        """Loads a version in every replica, records it as live, and makes it known to every gateway.

        Args:
            action: promote the version, or roll back to the one before the live one.
            model: the name of a model that has versions.
            version: the beginning of a version's name; None for the latest.
            by: the author of the change, for the audit log.

        Returns:
            What was changed, for the response.

        Raises:
            RequestError: 409, there is no such version, or it differs in more than its weights; 500, it could not be
                loaded; 503, no replica answers.
        """
        store = self._stores[model]

        def choose_version() -> Any:
            if action == "rollback":
                return store.before_live()
            return store.find(version) if version else store.keep_latest()

        async with self._lock:
            try:
                before, chosen = store.live(), await run_in_threadpool(choose_version)
                if others := differing_files(before.folder, chosen.folder):
                    raise UserError(f"{', '.join(others)} changed too: start the server again to serve this version")
            except UserError as error:
                raise RequestError(409, str(error), "ConflictError") from error
            result = await self._models[model].promote(chosen.folder, chosen.weights)
            details: dict[str, Any] = {
                "model": model,
                "from": before.weights,
                "to": chosen.weights,
                "seconds": round(result.seconds, 3),
            }
            outcome: dict[str, Any] = {"error": result.error} if result.error else {"mixed_answers": result.mixed}
            if result.error:
                # Some of several replicas may have loaded the version.
                await self._models[model].promote(before.folder, before.weights)
            else:
                store.make_live(chosen.weights, again=action == "rollback")
                if unreached := await self._announce(model, chosen.weights):
                    outcome["unreached_gateways"] = list(unreached)
            audit(self._run.root, by, action, **details, **outcome)
        if result.error:
            raise RequestError(500, f"{model} still has its old weights: {result.error}", "PromotionError")
        return details | outcome
