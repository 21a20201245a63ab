"""`triptych serve`: deploys a run's finished models and the gateway on Ray Serve and watches them until interrupted."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from ray import serve
from rich.console import Console

from cluster.errors import UserError
from cluster.keys import KeyRing, new_key
from cluster.recipe.recipe import Recipe
from cluster.recipe.serve import CANARY, VISITOR, ModelName, Serve
from cluster.run.folder import RunFolder
from cluster.run.server_client import write_server
from cluster.run.versions import Versions, live_version
from cluster.run.weight_files import weight_files
from cluster.runtime.memory import SMALL_BYTES
from cluster.runtime.plan import Allocation, make_plan
from cluster.runtime.session import require_free_port
from serve.application import (
    END_SECONDS,
    POLL_SECONDS,
    GatewayNode,
    GatewayPlace,
    actor_environment,
    application_name,
    end_leftover,
    gateway_places,
    serve_instance,
    signals_interrupt,
    unfinished,
    wait_until_running,
    watch,
)
from serve.canary import start_canary
from serve.compat.ray_serve import start_application, stop_application
from serve.compat.vllm_engine import engine_environment
from serve.gateway import Gateway, GatewaySettings
from serve.http.auth import AnonymousAccess, anonymous_access, is_loopback
from serve.http.listener import encryption
from serve.pages.render import is_wildcard, url_host
from serve.pages.story import StoryTrainer, start_visitor, visitor_run
from serve.recording import Recording
from serve.replica.adapter_versions import AdapterVersions
from serve.replica.autoscaling import replica_options
from serve.replica.lora import adapters_of, check_adapters, with_adapters
from serve.replica.replica import Replica
from serve.routes import aliases_of

APPLICATION = "triptych"

MAX_ONGOING_REQUESTS = 1024
STOP_SECONDS = 5.0
# The most seconds for a replica that is no longer needed to finish its requests.
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
    settings: GatewaySettings = GatewaySettings(),
    section: Serve = Serve(),
    name: str = APPLICATION,
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
        section: the recipe's section, for the number of replicas, the adapters and the engines.
        name: the application's name in Ray Serve.

    Raises:
        DeadlineError: some model was not ready in time; the message names it.
        StageError: some model could not be loaded.
    """
    app = application(models, allocation, context, settings, host, port, section, deadline)
    start_application(app, name)
    wait_until_running(name, deadline)


def application(
    models: dict[str, Path],
    allocation: Allocation,
    context: int,
    settings: GatewaySettings,
    host: str,
    port: int,
    section: Serve,
    deadline: float,
) -> serve.Application:
    """Returns the Ray Serve application: the models' deployments, and the gateways', which hold their handles."""
    deployed = serve.deployment(
        max_ongoing_requests=MAX_ONGOING_REQUESTS * len(models),
        max_constructor_retry_count=1,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        **replica_options(section),
    )
    environment = actor_environment(engine_environment(allocation))
    deployments: list[tuple[serve.Application, list[str]]] = []
    for group in group_models(models, allocation):
        options = {"num_cpus": allocation.cpus * len(group), "num_gpus": allocation.gpus, "runtime_env": environment}
        placed = deployed(Replica).options(name="-".join(group), ray_actor_options=options)
        adapters = {model: adapters_of(model, section) for model in group}
        names = [*group, *(name for found in adapters.values() for name in found)]
        deployments.append((placed.bind(group, context, allocation, section, adapters), names))
    settings = replace(settings, context=context)
    start_seconds = None if section.min_replicas else deadline
    places = gateway_places(section.gateways, host, port)
    names = [place.name for place in places]

    def gateway(number: int, others: Sequence[serve.Application] = ()) -> serve.Application:
        place = places[number]
        deployed = serve.deployment(
            name=place.name,
            max_ongoing_requests=MAX_ONGOING_REQUESTS * len(models),
            health_check_period_s=HEALTH_SECONDS,
            graceful_shutdown_timeout_s=STOP_SECONDS,
            graceful_shutdown_wait_loop_s=POLL_SECONDS,
            # A gateway only passes text on, and reserves no CPU, which the models would lack.
            ray_actor_options={
                "num_cpus": 0,
                "resources": {place.node.resource: 0.001},
                "runtime_env": actor_environment({}),
            },
        )(Gateway)
        return deployed.bind(
            deployments, settings, host, place.port, STOP_SECONDS, start_seconds, names, number, others
        )

    return gateway(0, [gateway(number) for number in range(1, len(places))])


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
        story: the actor that trains the models of the story page's visitors, if there is such a page.

    Raises:
        UserError: the run has no finished model or is being served, the port is taken, or access without keys is
            requested on an address that other machines reach.
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
    end_leftover(run)
    node, *others = gateway_places(recipe.serve.gateways, host, port)
    for each in (node, *others):
        if each.node.is_here:
            require_free_port(host, each.port)
    if node.node.is_here:
        encryption(recipe.serve.tls)
    # The served version may be older than the finished model, after a rollback.
    versions: dict[str, Versions] = {name: Versions(run, name) for name in names}
    weights: dict[str, str | None] = {name: one.start().weights for name, one in versions.items()}
    if recipe.loop.canary_share and "policy" in versions:
        versions[CANARY] = start_canary(run)
        weights[CANARY] = versions[CANARY].live().weights
    if story:
        versions[VISITOR] = start_visitor(run)
        weights[VISITOR] = versions[VISITOR].live().weights
    kept = {name: AdapterVersions(run, name, folder) for name, folder in adapters.items()}
    weights |= {name: one.start().weights for name, one in kept.items()}
    models = {name: one.folder for name, one in versions.items()}
    owner, token = new_key("(owner)", ("admin",))
    settings = GatewaySettings(
        run.root,
        run.feedback_url,
        anonymous,
        weights=weights,
        aliases=aliases,
        owner=owner,
        story=story,
        tls=recipe.serve.tls,
        people_per_prompt=recipe.serve.people_per_prompt,
        recording=Recording(recipe.serve.record, recipe.serve.record_days),
        adapters=adapters,
    )
    section = with_adapters(recipe.serve, {name: one.folder for name, one in kept.items()})
    local = recipe.cluster.address == "local"
    certificate = Path(recipe.serve.tls.certificate).absolute() if recipe.serve.tls else None

    def url(place: GatewayPlace) -> str:
        # On a cluster a server on all addresses is reached by its node's.
        reached = url_host(place.node.address if is_wildcard(host) and not local else host)
        return f"{'https' if certificate else 'http'}://{reached}:{place.port}"

    address = url(node)
    application_id = application_name(run)
    server_files = [write_server(run, address, token, application=application_id, certificate=certificate)]
    if story:
        # The visitor's run promotes its policy to this server by itself.
        visitors = {"policy": VISITOR}
        server_files.append(write_server(visitor_run(run), address, token, visitors, certificate=certificate))
    is_up = False
    with signals_interrupt() as hurry, serve_instance(local):
        try:
            starting = f"starting {', '.join(models)}"
            if not console.is_terminal:
                # A status line is for terminals alone, and a log would say nothing for minutes.
                console.print(starting, soft_wrap=True)
            with console.status(starting):
                deploy(
                    models,
                    host,
                    port,
                    replica_allocation(recipe.serve, make_plan(recipe).replica),
                    recipe.serve.engine.max_model_len or recipe.model.context,
                    recipe.cluster.deadline_seconds,
                    settings,
                    section,
                    application_id,
                )
            is_up = True
            console.print(
                f"serving [bold]{', '.join([*models, *adapters])}[/]: chat at {address}, OpenAI API at {address}/v1"
            )
            for name, folder in adapters.items():
                if weights[name] != kept[name].started_with():
                    text = f"{name} is version {str(weights[name])[:12]}, promoted earlier, and not {folder}: "
                    console.print(f"{text}`triptych promote {run.root} {name}` serves that", soft_wrap=True)
            if others:
                console.print(f"further gateways are at {', '.join(map(url, others))}", soft_wrap=True)
            if not local:
                for each in (node, *others):
                    console.print(listening_notice(each.node, host, each.port), soft_wrap=True)
            if story:
                console.print(f"the three steps of training, to try out, at {address}/story")
            console.print(f"people rank at {address}/label; `triptych annotator add NAME --run {run.root}` lets one in")
            console.print(access_notice(run, anonymous))
            if (whose := recipe.serve.record) != "off":
                console.print(f"prompts are stored for {recipe.serve.record_days:g} days (serve.record: {whose})")
            console.print("Ctrl-C ends it")
            watch(application_id)
        except KeyboardInterrupt:
            console.print("stopping; Ctrl-C again does not wait for answers in progress")
        finally:
            # A replica cannot end before it has loaded its model. On this machine its process ends with the command.
            stopped = (local and not is_up) or stop_application(application_id, END_SECONDS, hurry)
            # If the server goes on, its file names the application, and the next `triptych serve` of the run ends it.
            for server_file in server_files if stopped or local else []:
                server_file.unlink(missing_ok=True)
            if not stopped:
                what = "their processes are ended" if local else f"`serve status` shows {application_id}"
                left = unfinished(application_id) or "parts of the server"
                after = "the second Ctrl-C" if hurry.is_set() else f"{END_SECONDS:.0f} s"
                console.print(f"after {after} these had not ended: {left}; {what}", soft_wrap=True)


def listening_notice(node: GatewayNode, host: str, port: int) -> str:
    """Returns one line that says on which node of a cluster the server listens, and who reaches it."""
    if not is_loopback(host):
        return f"it listens on node {node.address}"
    tunnel = f"ssh -N -L {port}:{host}:{port} {node.address}"
    return (
        f"it listens on node {node.address} for programs of that node alone: `{tunnel}` brings it to another machine, "
        "or --host 0.0.0.0 opens it to all who have a key"
    )


def replica_allocation(section: Serve, planned: Allocation) -> Allocation:
    """Returns the resources of a model's replica: the planned ones, or as many GPUs as a model is divided among.

    Raises:
        UserError: a model is to be divided among several GPUs and there is none.
    """
    size = section.engine.tensor_parallel_size
    if size is None or (size == 1 and not planned.gpus):
        return planned
    if not planned.gpus:
        raise UserError(f"serve.engine.tensor_parallel_size={size} needs as many GPUs, and there is none")
    return replace(planned, gpus=size)


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
        name: sum(file.stat().st_size for file in weight_files(live_version(path).folder))
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
