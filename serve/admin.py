"""The routes under /admin, for keys with the scope admin: the state of the replicas, and which weights are served."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from cluster.errors import UserError
from cluster.feedback import Feedback
from cluster.keys import audit
from cluster.run.trail import answer_open_round
from cluster.run.versions import Versions
from serve.errors import RequestError
from serve.http.request_context import RequestContext, json_body
from serve.promotions import Action
from serve.replica.adapter_versions import AdapterVersions
from serve.replica.autoscaling import ReplicaStates

# The same as `Promotions.change`, which may be in another gateway.
Change = Callable[[Action, str, str | None, str], Awaitable[dict[str, Any]]]


class RoundAnswer(BaseModel):
    """An answer on the loop's round in progress: whether its policy may take over, else the round is set aside."""

    model_config = ConfigDict(extra="forbid")

    round: Annotated[int, Field(ge=1)]
    approved: bool


class LiveDeletion(BaseModel):
    """Names stored prompts of live traffic to delete, by exactly one of three."""

    model_config = ConfigDict(extra="forbid")

    key: str | None = None
    request: str | None = None
    text: str | None = None


def admin_router(
    stores: Mapping[str, Versions],
    models: Collection[str],
    weights: Mapping[str, str | None],
    change: Change,
    read_states: Callable[[], ReplicaStates],
    root: Path | None = None,
    database: Feedback | None = None,
) -> APIRouter:
    """Returns the routes under /admin.

    Args:
        stores: the versions of every model that has some, by its name.
        models: the names of the models.
        weights: the version of every model's weights.
        change: changes a version.
        read_states: returns the states of the replicas; it may block.
        root: the run folder, with the rounds of the loop; None for models without a run.
        database: the feedback database; without one there are no routes for prompts of live traffic.
    """
    router = APIRouter(prefix="/admin")

    def require_versions(name: Any) -> str:
        if not isinstance(name, str) or name not in models:
            message = f"name the model in the field `model`; served are {', '.join(models)}"
            raise RequestError(404, message, "NotFoundError", "model")
        if name not in stores:
            raise RequestError(409, f"{name} has no versions", "ConflictError", "model")
        return name

    def keep_adapter(name: str, folder: Any) -> str:
        """Keeps the adapter that lies in a folder as a version, and returns the version."""
        store = stores[name]
        if not isinstance(store, AdapterVersions):
            message = f"{name} is no adapter of the recipe's serve.adapters; a model's weights come from its stage"
            raise RequestError(400, message, param="adapter")
        if not isinstance(folder, str) or not Path(folder).is_absolute():
            raise RequestError(400, "`adapter` is the absolute path of a folder in PEFT's format", param="adapter")
        try:
            return store.keep_folder(Path(folder)).weights
        except UserError as error:
            raise RequestError(409, str(error), "ConflictError", "adapter") from error

    @router.get("/versions")
    def versions() -> dict[str, Any]:
        return {name: {"live": weights.get(name), "kept": one.kept()} for name, one in stores.items()}

    @router.get("/replicas")
    def replicas() -> ReplicaStates:
        return read_states()

    @router.post("/promote")
    async def promote(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        model, version = require_versions(body.get("model")), body.get("version")
        if not isinstance(version, str | None):
            raise RequestError(400, "`version` is the beginning of a version's name", param="version")
        if (folder := body.get("adapter")) is not None:
            if version is not None:
                raise RequestError(400, "give `version` or `adapter`, and not both", param="adapter")
            version = await run_in_threadpool(keep_adapter, model, folder)
        return await change("promote", model, version, _author(request))

    @router.post("/round")
    def answer(request: Request, body: RoundAnswer) -> dict[str, Any]:
        if root is None:
            raise RequestError(404, "this server serves no run, and so no rounds", "NotFoundError")
        by = _author(request)
        try:
            answer_open_round(root, body.approved, by, body.round)
        except UserError as error:
            raise RequestError(409, str(error), "ConflictError") from error
        audit(root, by, "approve" if body.approved else "refuse", round=body.round)
        return {"round": body.round, "approved": body.approved}

    @router.post("/rollback")
    async def rollback(request: Request) -> dict[str, Any]:
        body = await json_body(request)
        return await change("rollback", require_versions(body.get("model")), None, _author(request))

    if database is not None:
        _add_live_routes(router, database, root)
    return router


def _add_live_routes(router: APIRouter, database: Feedback, root: Path | None) -> None:
    @router.get("/live")
    def counts() -> dict[str, Any]:
        return {"stored": database.live_counts()}

    @router.post("/live/delete")
    def delete(request: Request, body: LiveDeletion) -> dict[str, Any]:
        try:
            deleted = database.delete_live(body.key, body.request, body.text)
        except UserError as error:
            raise RequestError(400, str(error), "BadRequestError") from error
        found = {"deleted": len(deleted.prompts), "judgements": deleted.judgements}
        if root is not None:
            # Not the text, which may be what somebody wants gone.
            by = next(iter(body.model_dump(exclude_none=True)))
            audit(root, _author(request), "live delete", named_by=by, **found)
        return found


def _author(request: Request) -> str:
    context: RequestContext = request.state.context
    return context.caller.name or "a program of this machine"
