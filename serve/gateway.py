"""The gateway: the HTTP application put together from its routers, and the Ray Serve deployment that runs it."""

import asyncio
import gc
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import ray
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.feedback import open_feedback
from cluster.keys import Key
from cluster.recipe.serve import CANARY, VISITOR, Alias, ModelName, Tls
from cluster.run.folder import RunFolder
from cluster.run.versions import Version, Versions
from serve.admin import admin_router
from serve.canary import CanaryShare
from serve.compat.ray_serve import listen_on_node_address
from serve.errors import RequestError
from serve.http.application import new_application
from serve.http.auth import AnonymousAccess, Authorizer
from serve.http.budgets import TokenBudgets
from serve.http.limits import KeyUse, body_limit
from serve.http.listener import Listener
from serve.http.metrics import GatewayMetrics
from serve.http.middleware import Middleware
from serve.http.openapi import openapi
from serve.pages.chat import chat_router
from serve.pages.compare import compare_router
from serve.pages.label import label_router
from serve.pages.runs import runs_router
from serve.pages.story import StoryTrainer, story_router, visitor_versions
from serve.pages.thumbs import thumbs_router
from serve.peers import Peers
from serve.promotions import Action, Promotions
from serve.recording import Recorder, Recording
from serve.replica.adapter_versions import AdapterVersions
from serve.replica.autoscaling import ReplicaStates, state_reader
from serve.router import Router
from serve.routes import Routes
from serve.transport.gateway_end import ReplicaListener
from serve.transport.messages import Endpoint, EngineState
from serve.transport.pool import ModelEndpoint, RemoteModel, ReplicaPool

READY_SECONDS = 5.0
# The states of a model that cannot be reached: it has answered before, or it has not answered yet.
UNREACHABLE, LOADING = "unreachable", "loading"
# Prometheus waits 10 s by itself.
METRICS_SECONDS = 2.0


@dataclass(frozen=True)
class GatewaySettings:
    """The settings of a gateway.

    Attributes:
        run: the run folder, with the keys, the logs and the data of the run page; None for models without a run.
        feedback_url: the URL of the feedback database; without one there is no label, compare or thumbs route.
        anonymous: whether requests without a key are admitted.
        max_concurrent: the most requests of one model at once.
        weights: the version of every model's weights at the start.
        aliases: additional names of models.
        owner: the key of the person who started the server.
        context: the most tokens of a request, prompt and answer together.
        story: the actor that trains the models of the story page's visitors; without one there is no such page.
        tls: the certificate of the HTTP server; None for plain HTTP.
        people_per_prompt: how many people rank each prompt on the label page.
        recording: whose prompts are stored in the feedback database.
        adapters: the folders of the recipe's adapters, by their names.
    """

    run: Path | None = None
    feedback_url: str | None = None
    anonymous: AnonymousAccess = "until a key is made"
    max_concurrent: int = 256
    weights: Mapping[str, str | None] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    owner: Key | None = None
    context: int = 2048
    story: StoryTrainer | None = None
    tls: Tls | None = None
    people_per_prompt: int = 1
    recording: Recording = field(default_factory=Recording)
    adapters: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class GatewayApp:
    """The HTTP application of a gateway, and the parts of it that the other gateways of its server use.

    Attributes:
        asgi: the application, wrapped in the `Middleware`.
        live: the live versions of the models that have some, by their names.
        show_weights: records the version that a model is served with from now on.
        promotions: changes the versions; None for models without a run.
        recorder: stores prompts and deletes them again; None without a feedback database.
    """

    asgi: Middleware
    live: Mapping[str, Version]
    show_weights: Callable[[str, str], None]
    promotions: Promotions | None
    recorder: Recorder | None


def build_gateway(
    models: Mapping[str, ModelEndpoint],
    settings: GatewaySettings,
    read_states: Callable[[], ReplicaStates],
    peers: Peers,
) -> GatewayApp:
    """Builds the HTTP application of a gateway.

    Args:
        models: the models by the names that clients use.
        settings: the gateway's settings.
        read_states: returns the states of the models' replicas; it may block.
        peers: the gateways of the server.
    """
    run = RunFolder(settings.run) if settings.run else None
    stores = _stores(run, models, settings) if run else {}
    # A gateway that replaces another one starts with the versions that were promoted before.
    live = {name: store.live() for name, store in stores.items() if store.kept()}
    weights = {name: live[name].weights if name in live else settings.weights.get(name) for name in models}
    authorizer = Authorizer(settings.run, settings.anonymous, settings.owner)
    metrics = GatewayMetrics(weights)
    canary = CanaryShare(settings.run, weights)
    routes = Routes(models, settings.aliases, random.Random(), canary)
    database = open_feedback(settings.feedback_url) if settings.feedback_url else None
    recording = settings.recording if database else Recording()
    recorder = Recorder(recording, database, metrics) if database else None
    router = Router(models, routes, settings.max_concurrent, weights, metrics, settings.context, recorder)
    app = new_application("Triptych")
    app.include_router(router.api())
    app.include_router(chat_router(recording))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    answered = set[str]()

    @app.get("/ready")
    async def ready(request: Request) -> JSONResponse:
        states = dict(zip(models, await asyncio.gather(*map(_readiness, models.values())), strict=True))
        answered.update(name for name, state in states.items() if state["status"] != UNREACHABLE)
        for name in states.keys() - answered:
            states[name]["status"] = LOADING
        # One unreachable model makes the server unhealthy, whether or not others are still loading.
        worst = next((one for one in (UNREACHABLE, LOADING) if any(one == s["status"] for s in states.values())), "ok")
        known = authorizer.is_open() or request.state.context.caller.key is not None
        body = {"status": "unhealthy" if worst == UNREACHABLE else worst} | ({"models": states} if known else {})
        return JSONResponse(body, 200 if worst == "ok" else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        for name, states in zip(models, await asyncio.gather(*map(_engine_states, models.values())), strict=True):
            if states is not None:
                metrics.show_engines(name, states)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    async def describe() -> dict[str, Any]:
        schemas: dict[Endpoint, dict[str, Any]] = {}
        for one in await asyncio.gather(*(model.schemas() for model in models.values())):
            schemas |= one
        return openapi(schemas)

    if database:
        # A visitor's policy is theirs alone: its votes would be those of many models.
        own_models = {name: model for name, model in models.items() if name != VISITOR}
        people = settings.people_per_prompt
        app.include_router(
            label_router(database, people, authorizer.annotator, authorizer.is_admin, authorizer.is_open)
        )
        app.include_router(
            compare_router(
                database,
                own_models,
                weights,
                router.response_parts,
                authorizer.annotator,
                authorizer.is_open,
                canary.on_trial,
            )
        )
        app.include_router(thumbs_router(database, models))

    def show_weights(model: str, version: str) -> None:
        weights[model] = version
        metrics.show_weights(model, version)

    async def announce(model: str, version: str) -> list[str]:
        show_weights(model, version)
        return await peers.announce(model, version)

    promotions, log = None, None
    if run:
        if settings.story:
            app.include_router(story_router(settings.story))
        app.include_router(runs_router(run.root))
        promotions = Promotions(run, stores, models, announce)
        change = promotions.change if peers.is_first else peers.change
        app.include_router(admin_router(stores, models, weights, change, read_states, run.root, database))
        log = run.root / (f"access-{peers.number}.jsonl" if peers.number else "access.jsonl")
    budgets = TokenBudgets(settings.run, peers.number)
    asgi = Middleware(app, authorizer, metrics, log, body_limit(settings.context), budgets)
    return GatewayApp(asgi, live, show_weights, promotions, recorder)


def _stores(run: RunFolder, models: Collection[str], settings: GatewaySettings) -> dict[str, Versions]:
    """Returns the versions of every model that has some, by its name."""
    stores = {name: Versions(run, name) for name in models if name in (*get_args(ModelName), CANARY)}
    stores |= {name: AdapterVersions(run, name, folder) for name, folder in settings.adapters.items()}
    return stores | ({VISITOR: visitor_versions(run)} if settings.story else {})


class Gateway:
    """The Ray Serve deployment of the gateway. It listens by itself: Serve's proxy would cost every token one more hop.

    Args:
        deployments: the deployments of the models, each with the names of its models.
        settings: the gateway's settings.
        host: the address to listen on.
        port: the port to listen on.
        stop_seconds: how long responses in progress may take at shutdown.
        start_seconds: where deployments may have no replica for a while, how long one may take to load its model.
        names: the names of the deployments of the server's gateways.
        number: the place of this one among them. The first promotes.
        others: the handles of the others. Unused: Ray Serve deploys only what the first gateway is bound to.
    """

    async def __init__(  # type: ignore[misc]
        self,
        deployments: Sequence[tuple[DeploymentHandle, list[str]]],
        settings: GatewaySettings,
        host: str,
        port: int,
        stop_seconds: float,
        start_seconds: float | None,
        names: Sequence[str],
        number: int,
        others: Sequence[DeploymentHandle] = (),
    ) -> None:
        del others
        listen_on_node_address()
        self._replicas = ReplicaListener()
        await self._replicas.open(ray.util.get_node_ip_address())
        models: dict[str, ModelEndpoint] = {}
        pools: dict[str, ReplicaPool] = {}
        for handle, served in deployments:
            pool = ReplicaPool(handle, self._replicas, start_seconds)
            models |= {name: RemoteModel(pool, name) for name in served}
            pools |= dict.fromkeys(served, pool)
        application = serve.get_replica_context().app_name
        peers = Peers(names, number, application)
        self._app = build_gateway(models, settings, state_reader(application), peers)
        if peers.is_first:
            for name, version in self._app.live.items():
                pools[name].expect(name, version.folder, version.weights)
        work = [*(pool.maintain() for pool in set(pools.values())), peers.share(self._app.asgi)]
        if peers.is_first and self._app.recorder:
            work.append(self._app.recorder.expire_regularly())
        self._maintenance = [asyncio.create_task(one) for one in work]
        self._clients = Listener(self._app.asgi, host, port, stop_seconds, tls=settings.tls)
        # A large request sets off collections of garbage. Without this each looks through all that was imported, and no
        # client gets a token for 60 ms in place of 5.
        gc.collect()
        gc.freeze()

    async def show_weights(self, model: str, weights: str) -> None:
        """Records the version that a model is served with from now on. Called by the first gateway."""
        self._app.show_weights(model, weights)

    async def key_use(self) -> KeyUse:
        """Returns the use of keys in this gateway. Called by the other gateways."""
        return self._app.asgi.key_use()

    async def change(self, action: Action, model: str, version: str | None, by: str) -> tuple[int, dict[str, Any]]:
        """Changes a version as `Promotions.change` does. Called by the other gateways.

        Returns:
            The HTTP status, and what was changed, or what is wrong.
        """
        assert self._app.promotions, "only a server of a run has versions"
        try:
            return 200, await self._app.promotions.change(action, model, version, by)
        except RequestError as error:
            return error.status_code, error.body["error"]

    async def check_health(self) -> None:
        """Raises a RuntimeError if the listener has ended. Ray Serve, which calls this, then replaces the gateway."""
        if not self._clients.is_open():
            raise RuntimeError("the HTTP listener has ended")

    async def __del__(self) -> None:
        # Called by Ray Serve at shutdown. Replicas finish their requests as long as they are connected.
        for task in self._maintenance:
            task.cancel()
        await self._clients.close()
        if self._app.recorder:
            await self._app.recorder.finish()
        self._replicas.close()


async def _engine_states(model: ModelEndpoint) -> list[EngineState] | None:
    """Returns the states of a model's engines: none while it sleeps; None if it cannot be reached."""
    try:
        return await asyncio.wait_for(model.engine_states(), METRICS_SECONDS)
    except (RequestError, TimeoutError):
        # The last known state stays, and `/ready` says that the model cannot be reached.
        return None


async def _readiness(model: ModelEndpoint) -> dict[str, Any]:
    try:
        requests = await asyncio.wait_for(model.requests(), READY_SECONDS)
    except (RequestError, TimeoutError):
        return {"status": UNREACHABLE}
    # A model without replicas is asleep: the next request starts one.
    return {"status": "ok" if requests else "asleep", "replicas": len(requests), "requests": sum(requests)}
