"""One application of Ray Serve among those of others on a cluster: its name, node, environment, health and end."""

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from cluster.errors import DeadlineError, StageError, UserError
from cluster.run.folder import RunFolder
from cluster.run.server_client import application_of
from serve.compat.ray_serve import done_within, is_client_connection, is_serve_running, stop_application
from serve.http.auth import is_loopback
from serve.pages.render import is_wildcard
from serve.replica.autoscaling import failure_reason

MAX_PORT = 65535
POLL_SECONDS = 0.2
WATCH_SECONDS = 5.0
# The most seconds for Ray to restart Serve's controller, which takes some 5 s.
CONTROLLER_SECONDS = 60.0
# The most seconds for the gateway and the replicas to end by themselves, before their processes are ended.
END_SECONDS = 15.0
# Signals that come so soon after the first one are the same Ctrl-C.
SECOND_SECONDS = 1.0
# The most seconds that `unfinished` waits for Ray Serve's answer.
STATUS_SECONDS = 2.0
# The parts of a driver's runtime environment that its actors need too: code, and environment variables.
SHIPPED = ("py_modules", "working_dir", "env_vars")


def application_name(run: RunFolder) -> str:
    """Returns a name that no other application of the cluster has."""
    return f"triptych-{run.root.name}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class GatewayNode:
    """The node on which the gateway runs.

    Attributes:
        resource: the resource of Ray that places an actor there.
        address: the node's IP address.
        is_here: whether the command runs on it too.
    """

    resource: str
    address: str
    is_here: bool


def gateway_node() -> GatewayNode:
    """Returns the node of this command, or the cluster's node that acts for it if it is connected by Ray's client."""
    own = ray.get_runtime_context().get_node_id()
    node = next(one for one in ray.nodes() if one["NodeID"] == own)
    address = node["NodeManagerAddress"]
    return GatewayNode(f"node:{address}", address, not is_client_connection())


@dataclass(frozen=True)
class GatewayPlace:
    """The place of one of a server's gateways.

    Attributes:
        name: the name of its deployment.
        node: the node on which it runs.
        port: the port to listen on.
    """

    name: str
    node: GatewayNode
    port: int


def gateway_places(count: int, host: str, port: int) -> list[GatewayPlace]:
    """Returns the address of each gateway: one on each node of the cluster, beginning with the node of the command; if
    there are more gateways than nodes, several on a node, at the next ports.

    Raises:
        UserError: there is no such port, or the host is the address of one node and there are several.
    """
    own = gateway_node()
    others = {one["NodeManagerAddress"] for one in ray.nodes() if one["Alive"]} - {own.address}
    nodes = [own, *(GatewayNode(f"node:{address}", address, False) for address in sorted(others))][:count]
    last = port + (count - 1) // len(nodes)
    if last > MAX_PORT:
        raise UserError(f"serve.gateways={count} needs the ports {port} to {last}, and {MAX_PORT} is the last there is")
    if len(nodes) > 1 and not is_wildcard(host) and not is_loopback(host):
        raise UserError(
            f"serve.gateways={count} uses {len(nodes)} nodes, and {host} is the address of one: use serve.host=0.0.0.0"
        )
    places = (divmod(number, len(nodes)) for number in range(count))
    return [
        GatewayPlace(f"gateway-{number}" if number else "gateway", nodes[node], port + more)
        for number, (more, node) in enumerate(places)
    ]


def actor_environment(variables: dict[str, str]) -> dict[str, Any]:
    """Returns the runtime environment of a deployment's actors: this driver's, with more environment variables.

    Serve's controller makes the actors, which get the controller's environment and not the driver's, unless they name
    it: another driver may have started the controller.
    """
    own = {name: value for name, value in dict(ray.get_runtime_context().runtime_env).items() if name in SHIPPED}
    return own | {"env_vars": own.get("env_vars", {}) | variables}


@contextmanager
def serve_instance(local: bool) -> Iterator[None]:
    """Restores the state of Ray Serve at the end: its other applications go on, and without any it is shut down.

    Args:
        local: whether the cluster ends with this command, and Serve with it.
    """
    was_running = is_serve_running()
    try:
        yield
    finally:
        if not local and not was_running and not serve.status().applications:
            serve.shutdown()


def end_leftover(run: RunFolder) -> None:
    """Ends the application of a `triptych serve` of this run that was killed, if it is still deployed.

    The caller holds the lock `RunFolder.serving`: no command watches over that application any more.

    Raises:
        DeadlineError: it does not end.
    """
    name = application_of(run.root)
    if name is None or not is_serve_running() or name not in serve.status().applications:
        return
    if not stop_application(name, END_SECONDS):
        raise DeadlineError(f"waited {END_SECONDS:.0f} s for {name} to end, which a killed command left behind")


def wait_until_running(name: str, deadline: float) -> None:
    """Waits until every deployment of an application is healthy.

    Raises:
        DeadlineError: some deployment was not after `deadline` seconds; the message names it.
        StageError: some deployment could not be started.
    """
    end = time.monotonic() + deadline
    while (status := _status(name)).status != ApplicationStatus.RUNNING:
        pending = {one: state for one, state in status.deployments.items() if state.status.value != "HEALTHY"}
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise StageError(_failures(pending))
        if time.monotonic() > end:
            # Ray Serve says which resources a replica waits for.
            why = "; ".join(filter(None, map(failure_reason, pending.values()))) or "see the Ray logs"
            raise DeadlineError(f"waited {deadline:.0f} s for {', '.join(pending)} to be ready; {why}")
        time.sleep(POLL_SECONDS)


def unfinished(name: str) -> str:
    """Returns the deployments of an application that still have replicas, with the states of those, as text; empty if
    Ray Serve does not answer within `STATUS_SECONDS`."""
    found: list[str] = []

    def look() -> None:
        with suppress(KeyError, RayError, RayServeException):
            for one, state in _status(name).deployments.items():
                # Ray Serve gives members of an enumeration in some places, and their values in others.
                states = [str.lower(kind) for kind, count in state.replica_states.items() if count]
                found.extend([f"{one} ({', '.join(states)})"] if states else [])

    done_within(look, STATUS_SECONDS)
    return ", ".join(found)


def watch(name: str) -> None:
    """Blocks as long as Serve's controller answers; never returns.

    Raises:
        StageError: the controller has been silent for too long, or has given up on a deployment.
    """
    silent = 0.0
    while True:
        silent = 0.0 if is_healthy(name) else silent + WATCH_SECONDS
        if silent > CONTROLLER_SECONDS:
            raise StageError(f"Ray Serve's controller has said nothing for {silent:.0f} s; see the Ray logs")
        time.sleep(WATCH_SECONDS)


def is_healthy(name: str) -> bool:
    """Returns whether Ray Serve's controller answers and knows the application.

    The controller restarts replicas that die, and Ray restarts the controller. Until it has read its state again it
    knows no application, while the models go on answering.

    Raises:
        StageError: the controller has given up on a model.
    """
    try:
        status = _status(name)
    except (KeyError, RayActorError):
        return False
    if status.status == ApplicationStatus.DEPLOY_FAILED:
        raise StageError(status.message)
    return True


@contextmanager
def signals_interrupt() -> Iterator[threading.Event]:
    """Has SIGINT and SIGTERM raise a KeyboardInterrupt, once; a later one sets the event that is yielded."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    hurry, first = threading.Event(), list[float]()

    def interrupt(*_: object) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        # Programs that start this one may pass on the Ctrl-C that it got itself.
        if time.monotonic() - first[0] > SECOND_SECONDS:
            hurry.set()

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status(name: str) -> ApplicationStatusOverview:
    return serve.status().applications[name]


def _failures(pending: dict[str, DeploymentStatusOverview]) -> str:
    reasons = {name: failure_reason(one) for name, one in pending.items()}
    return "; ".join(f"{name} could not be started: {why}" for name, why in reasons.items() if why)
