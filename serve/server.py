"""`triptych serve`: deploys a run's finished models and the gateway on Ray Serve and watches them until interrupted."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview
from rich.console import Console

from cluster.errors import DeadlineError, StageError, UserError
from cluster.keys import KeyRing, new_key
from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import VISITOR, ModelName, Serve
from cluster.run.folder import RunFolder
from cluster.run.server_client import write_server
from cluster.run.versions import Versions, live_version
from cluster.runtime.memory import SMALL_BYTES
from cluster.runtime.plan import Allocation, make_plan
from cluster.runtime.session import require_free_port
from serve.compat import HEAD_NODE, engine_environment, start_application, stop_application
from serve.gateway import Gateway, Settings
from serve.http.auth import AnonymousAccess, anonymous_access
from serve.pages.render import url_host
from serve.pages.story import StoryTrainer, start_visitor, visitor_run
from serve.replica.autoscaling import failure_reason, replica_options
from serve.replica.lora import adapter_checksum, check_adapters
from serve.replica.replica import Replica
from serve.router import aliases_of

APPLICATION = "triptych"

MAX_ONGOING_REQUESTS = 1024
POLL_SECONDS = 0.2
WATCH_SECONDS = 5.0
# For Ray to restart Serve's controller, which takes some 5 s.
CONTROLLER_SECONDS = 60.0
STOP_SECONDS = 5.0
# For the gateway and the replicas to end, before their processes are.
END_SECONDS = 15.0
# For a replica that is no longer needed to finish its requests.
DRAIN_SECONDS = 300.0
# How often Ray Serve checks whether a replica is alive, and so how soon it replaces a dead one.
HEALTH_SECONDS = 2.0


def deploy(
    models: dict[str, Path],
    host: str,
    port: int,
    allocation: Allocation,
    context: int,
    deadline: float,
    settings: Settings = Settings(),
    section: Serve = Serve(),
) -> None:
    """Deploys the models and the gateway on the connected Ray, all at once, and returns when all are ready.

    Args:
        models: the Hugging Face directory, or the folder of versions, of each model, by the name that clients use.
        host: the address to listen on.
        port: the port to listen on.
        allocation: the resources of each model's replica.
        context: the most tokens of a request, prompt and answer together.
        deadline: seconds to wait until all models answer.
        settings: the gateway's settings.
        section: the recipe's section, for the number of replicas, the adapters and the tool parser.

    Raises:
        DeadlineError: some model was not ready in time; the message names it.
        StageError: some model could not be loaded.
    """
    start_application(application(models, allocation, context, settings, host, port, section), APPLICATION)
    _wait_until_running(deadline)


def application(
    models: dict[str, Path],
    allocation: Allocation,
    context: int,
    settings: Settings,
    host: str,
    port: int,
    section: Serve,
) -> serve.Application:
    """Returns the Ray Serve application: the models' deployments, and the gateway's, which holds their handles."""
    deployed = serve.deployment(
        max_ongoing_requests=MAX_ONGOING_REQUESTS * len(models),
        max_constructor_retry_count=1,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        **replica_options(section),
    )
    environment = {"env_vars": engine_environment(allocation)}
    gateway = serve.deployment(
        name="gateway",
        max_ongoing_requests=MAX_ONGOING_REQUESTS * len(models),
        graceful_shutdown_timeout_s=STOP_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        # It only passes text on, and reserves no CPU, which the models would lack. It listens where the command runs.
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_NODE: 0.001}},
    )(Gateway)
    deployments: list[tuple[serve.Application, list[str]]] = []
    for group in group_models(models, allocation):
        options = {"num_cpus": allocation.cpus * len(group), "num_gpus": allocation.gpus, "runtime_env": environment}
        placed = deployed(Replica).options(name="-".join(group), ray_actor_options=options)
        adapters = {model: adapters_of(model, section) for model in group}
        names = [*group, *(name for found in adapters.values() for name in found)]
        deployments.append((placed.bind(group, context, allocation, section.tool_parser, adapters), names))
    settings = replace(settings, context=context)
    return gateway.bind(deployments, settings, host, port, STOP_SECONDS, section.min_replicas == 0)


def serve_until_interrupted(
    recipe: Recipe,
    run: RunFolder,
    console: Console | None = None,
    without_keys: bool = False,
    story: StoryTrainer | None = None,
) -> None:
    """Serves a run's finished models on the connected Ray until SIGINT or SIGTERM. Runs in the main thread.

    Args:
        recipe: the whole recipe.
        run: the run folder.
        console: for messages.
        without_keys: whether to admit requests without a key even if the run has keys.
        story: the actor that trains what the story page's visitors ask for, if there is such a page.

    Raises:
        UserError: the run has no finished model or is being served, the port is taken, the cluster serves something
            else, or access without keys is requested on an address that other machines reach.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    anonymous = anonymous_access(recipe.serve.host, without_keys)
    # Two servers would overwrite each other's records of the live versions and of the server's address.
    with run.serving():
        _serve(recipe, run, console or Console(soft_wrap=True), anonymous, story)


def _serve(
    recipe: Recipe, run: RunFolder, console: Console, anonymous: AnonymousAccess, story: StoryTrainer | None
) -> None:
    host, port = recipe.serve.host, recipe.serve.port
    names = finished_models(run)
    aliases = aliases_of(names, recipe.serve.aliases)
    adapters = {name: folder for model in names for name, folder in adapters_of(model, recipe.serve).items()}
    check_adapters(recipe.serve, adapters)
    require_free_port(host, port)
    # The served version may be older than the finished model, after a rollback.
    versions: dict[str, Versions] = {name: Versions(run, name) for name in names}
    weights: dict[str, str | None] = {name: one.start().weights for name, one in versions.items()}
    if story:
        versions[VISITOR] = start_visitor(run)
        weights[VISITOR] = versions[VISITOR].live().weights
    weights |= {name: adapter_checksum(folder) for name, folder in adapters.items()}
    models = {name: one.folder for name, one in versions.items()}
    owner, token = new_key("(owner)", ("admin",))
    settings = Settings(
        run.root, run.feedback_url, anonymous, weights=weights, aliases=aliases, owner=owner, story=story
    )
    address = f"http://{url_host(host)}:{port}"
    if others := serve.status().applications:
        raise UserError(f"this Ray cluster serves {', '.join(others)} already; end that with `serve shutdown` first")
    server_files = [write_server(run, address, token)]
    if story:
        # The visitor's run promotes its policy to this server by itself.
        server_files.append(write_server(visitor_run(run), address, token, {"policy": VISITOR}))
    with _signals_interrupt():
        try:
            with console.status(f"starting {', '.join(models)}"):
                deploy(
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
            if story:
                console.print(f"the three steps of training, to try out, at {address}/story")
            console.print(f"people rank at {address}/label; `triptych annotator add NAME --run {run.root}` lets one in")
            console.print(access_notice(run, anonymous))
            console.print("Ctrl-C ends it")
            _watch()
        except KeyboardInterrupt:
            console.print("stopping")
        finally:
            for server_file in server_files:
                server_file.unlink(missing_ok=True)
            if not stop_application(APPLICATION, END_SECONDS):
                console.print(f"the server did not stop within {END_SECONDS:.0f} s; its processes are ended")
            # A local cluster ends with this command, and Serve's controller with it.
            if recipe.cluster.address != "local":
                serve.shutdown()


def adapters_of(model: str, section: Serve) -> dict[str, Path]:
    """Returns the folders of a model's adapters, by their names."""
    return {name: Path(one.path).absolute() for name, one in section.adapters.items() if one.model == model}


def access_notice(run: RunFolder, anonymous: AnonymousAccess) -> str:
    """Returns one line that says whether a key is needed, and how to make one."""
    make = f"`triptych key add NAME --run {run.root} --scope chat`"
    if anonymous == "always":
        return "open to every program of this machine, without keys"
    if KeyRing(run.root).exists():
        return f"a key is needed; {make} makes another"
    if anonymous == "never":
        return f"a key is needed and there is none yet: {make} makes one"
    return f"open to every program of this machine until there is a key: {make} makes one"


def group_models(models: Mapping[str, Path], allocation: Allocation) -> list[dict[str, Path]]:
    """Returns the models of each replica: on CPUs small models share a process, every other one has its own."""
    sizes = {
        name: sum(file.stat().st_size for file in live_version(path).folder.glob("*.safetensors"))
        for name, path in models.items()
    }
    small = {name: path for name, path in models.items() if not allocation.gpus and sizes[name] <= SMALL_BYTES}
    separate = [{name: path} for name, path in models.items() if name not in small]
    return [small, *separate] if small else separate


def finished_models(run: RunFolder) -> list[ModelName]:
    """Returns the names of the models that a run has finished, or has promoted during their training.

    Raises:
        UserError: there is none.
    """
    names = [name for name in get_args(ModelName) if run.manifest(name) is not None or Versions(run, name).kept()]
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
            raise StageError(_failures(pending))
        if time.monotonic() > end:
            raise DeadlineError(f"waited {deadline:.0f} s for {', '.join(pending)} to be ready; see the Ray logs")
        time.sleep(POLL_SECONDS)


def _failures(pending: dict[str, DeploymentStatusOverview]) -> str:
    reasons = {name: failure_reason(one) for name, one in pending.items()}
    return "; ".join(f"{name} could not be started: {why}" for name, why in reasons.items() if why)


def _watch() -> None:
    silent = 0.0
    while True:
        silent = 0.0 if is_healthy() else silent + WATCH_SECONDS
        if silent > CONTROLLER_SECONDS:
            raise StageError(f"Ray Serve's controller has said nothing for {silent:.0f} s; see the Ray logs")
        time.sleep(WATCH_SECONDS)


def is_healthy() -> bool:
    """Returns whether Ray Serve's controller answers and knows the application.

    The controller restarts replicas that die, and Ray restarts the controller. Until it has read its state again it
    knows no application, while the models go on answering.

    Raises:
        StageError: the controller has given up on a model.
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
