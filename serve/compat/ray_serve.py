"""The uses of Ray Serve that are private, or that change between its versions."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

# How often a wait looks whether it shall end before its time.
HURRY_SECONDS = 0.2


def is_serve_running() -> bool:
    """Tells whether the cluster has a controller of Ray Serve, without starting one.

    Look at `SERVE_CONTROLLER_NAME` and `SERVE_NAMESPACE` in `ray.serve._private.constants`.
    """
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def is_client_connection() -> bool:
    """Tells whether this process uses a cluster from outside, by Ray's client (`ray.util.client`)."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def start_application(app: serve.Application, name: str) -> None:
    """Asks Ray Serve to start an application, and returns before it runs.

    Look at `run_many`, a developer API: `serve.run` waits until every deployment is ready, without a deadline.
    """
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
    target = serve.RunTarget(app, name, None, logging_config=quiet)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def listen_on_node_address() -> None:
    """Restricts this replica's gRPC server, which Ray Serve starts after the constructor, to the node's own address.

    Look at `add_port_to_grpc_server` in `ray.serve._private.replica`: it is given all interfaces, without a setting.
    """
    from ray.serve._private import replica

    address = ray.util.get_node_ip_address()
    original = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, place: original(server, place.replace("[::]", address))


def stop_application(name: str, seconds: float, hurry: threading.Event | None = None) -> bool:
    """Asks Ray Serve to end an application, and returns whether it ended within a number of seconds, or before `hurry`
    was set.

    Look at `ServeControllerClient.delete_apps`, which waits for the controller without a deadline, and then for 60 s.
    """

    def delete() -> None:
        # A controller or a cluster that is gone has ended the application too.
        with suppress(RayError, RayServeException, TimeoutError):
            serve.delete(name)

    return done_within(delete, seconds, hurry)


def done_within(work: Callable[[], None], seconds: float, hurry: threading.Event | None = None) -> bool:
    """Runs a function in a thread, and returns whether it finished within a number of seconds, or before `hurry` was
    set; if not, the thread runs on."""
    thread, end = threading.Thread(target=work, daemon=True), time.monotonic() + seconds
    thread.start()
    while thread.is_alive() and (left := end - time.monotonic()) > 0 and not (hurry and hurry.is_set()):
        thread.join(min(left, HURRY_SECONDS))
    return not thread.is_alive()


async def call_every_replica(handle: DeploymentHandle, method: str, *arguments: Any, seconds: float) -> list[Any]:
    """Calls a method of every replica of a deployment and returns the results, of a failed call its exception.

    Look at `DeploymentHandle.broadcast`, a recent addition to Ray Serve.

    Raises:
        DeploymentUnavailableError: there is no replica.
        TimeoutError: some replica took longer than `seconds`.
    """
    return await handle.broadcast(method, *arguments).results_async(timeout_s=seconds, return_exceptions=True)


def reported_counts(context: AutoscalingContext, metric: str) -> list[float]:
    """Returns the last values that the replicas of a deployment reported by `record_autoscaling_stats`, one number for
    each.

    Look at `AutoscalingContext`, an alpha API, and at how Ray Serve finds `record_autoscaling_stats` in a replica.
    """
    return list((context.aggregated_metrics or {}).get(metric, {}).values())
