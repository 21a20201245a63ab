"""The routes under /admin, for keys with the scope admin: the state of the replicas, and which weights are served."""

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from cluster.errors import UserError
from cluster.keys import audit
from cluster.run.folder import RunFolder
from cluster.run.versions import Version, Versions, differing_files
from serve.errors import RequestError
from serve.http.metrics import GatewayMetrics
from serve.http.request_context import RequestContext, json_body
from serve.replica.autoscaling import ReplicaStates
from serve.transport.pool import ModelEndpoint


def admin_router(
    run: RunFolder,
    stores: Mapping[str, Versions],
    models: Mapping[str, ModelEndpoint],
    weights: MutableMapping[str, str | None],
    metrics: GatewayMetrics,
    read_states: Callable[[], ReplicaStates],
) -> APIRouter:
    """Returns the routes under /admin.

    Args:
        run: the run whose models are served, and which has the log of changes.
        stores: the versions of every model that has some, by its name.
        models: the models by name.
        weights: the version of every model's weights, which a promotion updates.
        metrics: show the version.
        read_states: returns the states of the replicas; it may block.
    """
    router = APIRouter(prefix="/admin")
    # One change at a time: of two, each would take the other's version for the previous one.
    lock = asyncio.Lock()

    def versions_of(name: Any) -> Versions:
        if not isinstance(name, str) or name not in models:
            message = f"name the model in the field `model`; served are {', '.join(models)}"
            raise RequestError(404, message, "NotFoundError", "model")
        if name not in stores:
            message = f"{name} is an adapter, which has no versions: start the server again to serve another one"
            raise RequestError(409, message, "ConflictError", "model")
        return stores[name]

    @router.get("/versions")
    def versions() -> dict[str, Any]:
        return {name: {"live": weights.get(name), "kept": one.kept()} for name, one in stores.items()}

    @router.get("/replicas")
    def replicas() -> ReplicaStates:
        return read_states()

    @router.post("/promote")
    async def promote(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        store, name = versions_of(body.get("model")), body.get("version")
        if not isinstance(name, str | None):
            raise RequestError(400, "`version` is the beginning of a version's name", param="version")

        def choose() -> Version:
            return store.find(name) if name else store.keep_latest()

        return await _change(request, store, str(body["model"]), "promote", choose)

    @router.post("/rollback")
    async def rollback(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        store = versions_of(body.get("model"))
        return await _change(request, store, str(body["model"]), "rollback", store.before_live)

    async def _change(
        request: Request, store: Versions, model: str, action: str, choose: Callable[[], Version]
    ) -> dict[str, Any]:
        context: RequestContext = request.state.context
        async with lock:
            try:
                before, chosen = store.live(), await run_in_threadpool(choose)
                if others := differing_files(before.folder, chosen.folder):
                    raise UserError(f"{', '.join(others)} changed too: start the server again to serve this version")
            except UserError as error:
                raise RequestError(409, str(error), "ConflictError") from error
            result = await models[model].promote(chosen.folder, chosen.weights)
            details = {
                "model": model,
                "from": before.weights,
                "to": chosen.weights,
                "seconds": round(result.seconds, 3),
            }
            outcome = {"error": result.error} if result.error else {"mixed_answers": result.mixed}
            if result.error:
                # Of several replicas, some may have loaded it.
                await models[model].promote(before.folder, before.weights)
            else:
                store.make_live(chosen.weights, again=action == "rollback")
                weights[model] = chosen.weights
                metrics.show_weights(model, chosen.weights)
            audit(run.root, context.caller.name or "a program of this machine", action, **details, **outcome)
        if result.error:
            raise RequestError(500, f"{model} still has its old weights: {result.error}", "PromotionError")
        return details | outcome

    return router
