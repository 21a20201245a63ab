"""Puts finished models behind one HTTP address and keeps them there."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import ProxyLocation
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, LoggingConfig
from rich.console import Console

from cluster.errors import DeadlineError, StageError, UserError
from cluster.keys import KeyRing, new_key
from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import Serve, Served
from cluster.run.folder import RunFolder
from cluster.run.server_client import write_server
from cluster.run.versions import Versions, live_version
from cluster.runtime.plan import Allocation, make_plan
from cluster.runtime.session import require_free_port
from serve.gateway import Gateway, Settings
from serve.http.auth import Openness, is_loopback
from serve.pages.render import url_host
from serve.replica.autoscaling import reason, replica_options
from serve.replica.lora import check_adapters, checksum
from serve.replica.replica import Replica, engine_environment
from serve.router import aliases_of

APPLICATION = "triptych"

REQUESTS_AT_ONCE = 1024
POLL_SECONDS = 0.2
WATCH_SECONDS = 5.0
# For Ray to start Serve's controller again, which takes some 5 s.
CONTROLLER_SECONDS = 60.0
STOP_SECONDS = 5.0
# For a replica that is not needed any more to finish its answers.
LEAVE_SECONDS = 300.0
# How often Ray Serve looks whether a replica is alive, and so how soon it replaces one that died.
HEALTH_SECONDS = 2.0
# Up to so much an engine's memory and time are those of the process around it and not the model's.
SMALL_BYTES = 100 << 20
HEAD_NODE = "node:__internal_head__"


def serve_run(
    models: dict[str, Path],
    host: str,
    port: int,
    share: Allocation,
    context: int,
    deadline: float,
    settings: Settings = Settings(),
    section: Serve = Serve(),
) -> None:
    """Deploys the models and the gateway on the connected Ray, all at once, and returns when every one is ready.

    Args:
        models: the name that clients use, and the Hugging Face directory or the folder of versions, of each model.
        host: the address to listen on.
        port: the port to listen on.
        share: what each model's replica gets.
        context: tokens a request may have, prompt and answer together.
        deadline: seconds to wait until all models answer.
        settings: what the gateway is told besides.
        section: how many replicas there are, the adapters, and how models call tools.

    Raises:
        DeadlineError: some model was not ready in time; the message names it.
        StageError: some model could not be loaded.
    """
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
    app = application(models, share, context, settings, host, port, section)
    target = serve.RunTarget(app, APPLICATION, None, logging_config=quiet)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    _wait_until_running(deadline)


def application(
    models: dict[str, Path], share: Allocation, context: int, settings: Settings, host: str, port: int, section: Serve
) -> serve.Application:
    """The Ray Serve application: deployments of the models, and the gateway, which holds their handles."""
    deployed = serve.deployment(
        max_ongoing_requests=REQUESTS_AT_ONCE * len(models),
        max_constructor_retry_count=1,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=LEAVE_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        **replica_options(section),
    )
    environment = {"env_vars": engine_environment(share)}
    gateway = serve.deployment(
        name="gateway",
        max_ongoing_requests=REQUESTS_AT_ONCE * len(models),
        graceful_shutdown_timeout_s=STOP_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        # It only passes text on; a share of its own would be taken from the models. It listens where the command runs.
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_NODE: 0.001}},
    )(Gateway)
    deployments: list[tuple[serve.Application, list[str]]] = []
    for group in grouped(models, share):
        options = {"num_cpus": share.cpus * len(group), "num_gpus": share.gpus, "runtime_env": environment}
        placed = deployed(Replica).options(name="-".join(group), ray_actor_options=options)
        adapters = {model: adapters_of(model, section) for model in group}
        names = [*group, *(name for found in adapters.values() for name in found)]
        deployments.append((placed.bind(group, context, share, section.tool_parser, adapters), names))
    return gateway.bind(deployments, settings, host, port, STOP_SECONDS, section.min_replicas == 0)


def serve_until_interrupted(
    recipe: Recipe, run: RunFolder, console: Console | None = None, without_keys: bool = False
) -> None:
    """Serves a run's finished models on the connected Ray until SIGINT or SIGTERM. Runs in the main thread.

    Raises:
        UserError: the run has no finished model or is being served, the port is taken, the cluster serves something
            already, or it is to be open on an address that others reach.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    openness = openness_for(recipe.serve.host, without_keys)
    # Two servers would each write the versions that are live, and where the run is served.
    with run.serving():
        _serve(recipe, run, console or Console(soft_wrap=True), openness)


def _serve(recipe: Recipe, run: RunFolder, console: Console, openness: Openness) -> None:
    host, port = recipe.serve.host, recipe.serve.port
    names = models_of(run)
    aliases = aliases_of(names, recipe.serve.aliases)
    adapters = {name: folder for model in names for name, folder in adapters_of(model, recipe.serve).items()}
    check_adapters(recipe.serve, adapters)
    require_free_port(host, port)
    # The run made them; what is served of them may be older, after a rollback.
    versions: dict[str, Versions] = {name: Versions(run, name) for name in names}
    weights: dict[str, str | None] = {name: one.start().weights for name, one in versions.items()}
    weights |= {name: checksum(folder) for name, folder in adapters.items()}
    models = {name: one.folder for name, one in versions.items()}
    owner, token = new_key("(owner)", ("admin",))
    settings = Settings(run.root, run.feedback_url, openness, weights=weights, aliases=aliases, owner=owner)
    address = f"http://{url_host(host)}:{port}"
    if others := serve.status().applications:
        raise UserError(f"this Ray cluster serves {', '.join(others)} already; end that with `serve shutdown` first")
    server_file = write_server(run, address, token)
    with _signals_interrupt():
        try:
            with console.status(f"starting {', '.join(models)}"):
                serve_run(
                    models,
                    host,
                    port,
                    make_plan(recipe).replica,
                    recipe.model.context,
                    recipe.cluster.deadline_seconds,
                    settings,
                    recipe.serve,
                )
            console.print(
                f"serving [bold]{', '.join([*models, *adapters])}[/]: chat at {address}, OpenAI API at {address}/v1"
            )
            console.print(f"people rank at {address}/label; `triptych annotator add NAME --run {run.root}` lets one in")
            console.print(who_may_ask(run, openness))
            console.print("Ctrl-C ends it")
            _watch()
        except KeyboardInterrupt:
            console.print("stopping")
        finally:
            server_file.unlink(missing_ok=True)
            serve.delete(APPLICATION)
            # A local cluster ends with the command, and Serve's controller with it.
            if recipe.cluster.address != "local":
                serve.shutdown()


def adapters_of(model: str, section: Serve) -> dict[str, Path]:
    """The adapters that a model's engine also answers with, and where they lie."""
    return {name: Path(one.path).absolute() for name, one in section.adapters.items() if one.model == model}


def openness_for(host: str, without_keys: bool) -> Openness:
    """Whether a server on an address asks for keys.

    Raises:
        UserError: it is to ask for none although others reach the address.
    """
    if not is_loopback(host):
        if without_keys:
            raise UserError(f"--open is for this machine alone, and others reach {host}: use --host 127.0.0.1")
        return "never"
    return "always" if without_keys else "until a key is made"


def who_may_ask(run: RunFolder, openness: Openness) -> str:
    """One line that says whether a key is needed, and what to do."""
    make = f"`triptych key add NAME --run {run.root} --scope chat`"
    if openness == "always":
        return "open to every program of this machine, without keys"
    if KeyRing(run.root).exists():
        return f"a key is needed; {make} makes another"
    if openness == "never":
        return f"a key is needed and there is none yet: {make} makes one"
    return f"open to every program of this machine until there is a key: {make} makes one"


def grouped(models: Mapping[str, Path], share: Allocation) -> list[dict[str, Path]]:
    """The models of each replica: on CPUs small ones share a process, all others have one each."""
    sizes = {
        name: sum(file.stat().st_size for file in live_version(path).folder.glob("*.safetensors"))
        for name, path in models.items()
    }
    small = {name: path for name, path in models.items() if not share.gpus and sizes[name] <= SMALL_BYTES}
    alone = [{name: path} for name, path in models.items() if name not in small]
    return [small, *alone] if small else alone


def models_of(run: RunFolder) -> list[Served]:
    """The names of the models that a run has finished, or promoted while it made them.

    Raises:
        UserError: there is none.
    """
    names = [name for name in get_args(Served) if run.manifest(name) is not None or Versions(run, name).kept()]
    if not names:
        raise UserError(f"{run.root} holds no finished model yet: run `triptych run RECIPE` first")
    return names


def _status() -> ApplicationStatusOverview:
    return serve.status().applications[APPLICATION]


def _wait_until_running(deadline: float) -> None:
    end = time.monotonic() + deadline
    while (status := _status()).status != ApplicationStatus.RUNNING:
        pending = {name: one for name, one in status.deployments.items() if one.status.value != "HEALTHY"}
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise StageError(_why(pending))
        if time.monotonic() > end:
            raise DeadlineError(f"waited {deadline:.0f} s for {', '.join(pending)} to be ready; see the Ray logs")
        time.sleep(POLL_SECONDS)


def _why(pending: dict[str, DeploymentStatusOverview]) -> str:
    reasons = {name: reason(one) for name, one in pending.items()}
    return "; ".join(f"{name} could not be started: {why}" for name, why in reasons.items() if why)


def _watch() -> None:
    silent = 0.0
    while True:
        silent = 0.0 if is_well() else silent + WATCH_SECONDS
        if silent > CONTROLLER_SECONDS:
            raise StageError(f"Ray Serve's controller has said nothing for {silent:.0f} s; see the Ray logs")
        time.sleep(WATCH_SECONDS)


def is_well() -> bool:
    """Whether Ray Serve's controller answers and knows the application.

    It restarts what dies, and Ray restarts it; for a moment it then knows nothing, while the models go on answering.

    Raises:
        StageError: it has given up on a model.
    """
    try:
        status = _status()
    except (KeyError, RayActorError):
        return False
    if status.status == ApplicationStatus.DEPLOY_FAILED:
        raise StageError(status.message)
    return True


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
