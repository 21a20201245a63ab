"""What only keys with the scope admin may do: see how the replicas are, and change which weights are served."""

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, get_args

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from cluster.errors import UserError
from cluster.keys import audit
from cluster.recipe.serve import Served
from cluster.run.folder import RunFolder
from cluster.run.versions import Version, Versions, differing
from serve.errors import RequestError, json_body
from serve.http.metrics import Meters
from serve.http.request_context import RequestContext
from serve.replica.autoscaling import States
from serve.transport.pool import ModelEndpoint


def admin_router(
    run: RunFolder,
    models: Mapping[str, ModelEndpoint],
    weights: MutableMapping[str, str | None],
    meters: Meters,
    states: Callable[[], States],
) -> APIRouter:
    """The paths under /admin.

    Args:
        run: the run whose models are served.
        models: by name.
        weights: the version of every model, which a promotion changes.
        meters: where it shows.
        states: tells how the replicas are; it may take its time.
    """
    router = APIRouter(prefix="/admin")
    # One at a time: two would each take the other's version for the one before.
    turn = asyncio.Lock()

    def versions_of(name: Any) -> Versions:
        if not isinstance(name, str) or name not in models:
            message = f"name the model in the field `model`; served are {', '.join(models)}"
            raise RequestError(404, message, "NotFoundError", "model")
        if name not in get_args(Served):
            message = f"{name} is an adapter, which has no versions: start the server again to serve another one"
            raise RequestError(409, message, "ConflictError", "model")
        return Versions(run, name)

    @router.get("/versions")
    def versions() -> dict[str, Any]:
        found = {name: Versions(run, name) for name in models if name in get_args(Served)}
        return {name: {"live": weights.get(name), "kept": one.kept()} for name, one in found.items()}

    @router.get("/replicas")
    def replicas() -> States:
        return states()

    @router.post("/promote")
    async def promote(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        store, name = versions_of(body.get("model")), body.get("version")
        if not isinstance(name, str | None):
            raise RequestError(400, "`version` is the beginning of a version's name", param="version")

        def choose() -> Version:
            return store.find(name) if name else store.take_in()

        return await _change(request, store, str(body["model"]), "promote", choose)

    @router.post("/rollback")
    async def rollback(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        store = versions_of(body.get("model"))
        return await _change(request, store, str(body["model"]), "rollback", store.before_live)

    async def _change(request: Request, store: Versions, model: str, action: str, choose: Any) -> dict[str, Any]:
        visit: RequestContext = request.state.visit
        async with turn:
            try:
                before, chosen = store.live(), await run_in_threadpool(choose)
                if others := differing(before.folder, chosen.folder):
                    raise UserError(f"{', '.join(others)} changed too: start the server again to serve this version")
            except UserError as error:
                raise RequestError(409, str(error), "ConflictError") from error
            done = await models[model].promote(chosen.folder, chosen.weights)
            details = {"model": model, "from": before.weights, "to": chosen.weights, "seconds": round(done.seconds, 3)}
            outcome = {"error": done.error} if done.error else {"mixed_answers": done.mixed}
            if done.error:
                # With several replicas some may have it.
                await models[model].promote(before.folder, before.weights)
            else:
                store.make_live(chosen.weights, again=action == "rollback")
                weights[model] = chosen.weights
                meters.show_weights(model, chosen.weights)
            audit(run.root, visit.caller.name or "a program of this machine", action, **details, **outcome)
        if done.error:
            raise RequestError(500, f"{model} still has its old weights: {done.error}", "PromotionError")
        return details | outcome

    return router
