"""The number and the state of a deployment's replicas: the recipe's section `serve` in Ray Serve's terms."""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import DeploymentStatusOverview

from cluster.recipe.serve import Serve
from serve.compat.ray_serve import reported_counts
from serve.errors import RequestError

# The name under which replicas report how many requests they work on.
REQUESTS = "requests"
# How long the load has to last before another replica starts, how often it is reported, and over how long it is
# averaged.
UPSCALE_SECONDS = 4.0
REPORT_SECONDS = 2.0
MEAN_SECONDS = 8.0


def replica_options(settings: Serve) -> dict[str, Any]:
    """Returns a deployment's options for the number of its replicas.

    Ray Serve's own count of requests would be that of connections: the replicas report the real one.
    """
    if settings.min_replicas == settings.max_replicas:
        return {"num_replicas": settings.max_replicas}
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        # At least one, so that a model that cannot be loaded fails at the start.
        initial_replicas=max(1, settings.min_replicas),
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.target_requests,
        metrics_interval_s=REPORT_SECONDS,
        look_back_period_s=MEAN_SECONDS,
        upscale_delay_s=UPSCALE_SECONDS,
        downscale_delay_s=settings.idle_seconds,
        policy=AutoscalingPolicy(policy_function=desired_replicas),
    )
    return {"autoscaling_config": scaling}


def desired_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Returns the number of replicas at which each has the target number of requests, and no state of the policy.

    Ray Serve rounds it and applies bounds and delays.
    """
    counts = reported_counts(context, REQUESTS)
    if not counts:
        # Replicas that are starting do not report yet, and are still needed.
        return context.target_num_replicas, {}
    settings: Any = context.config
    return sum(counts) / settings.target_ongoing_requests, {}


# By deployment: its status as Ray Serve names it, and the reason.
ReplicaStates = dict[str, dict[str, str]]


def state_reader(application: str) -> Callable[[], ReplicaStates]:
    """Returns a function that asks Ray Serve for the states of an application's deployments.

    It has to run in a process of the Ray cluster, and raises a `RequestError`, 503, while Serve's controller is away.
    """

    def read() -> ReplicaStates:
        try:
            deployments = serve.status().applications[application].deployments
        except (KeyError, RayActorError) as error:
            message = "Ray Serve's controller is restarting: try again in some seconds"
            raise RequestError(503, message, "ServiceUnavailableError") from error
        return {name: {"status": one.status.value, "why": failure_reason(one)} for name, one in deployments.items()}

    return read


def failure_reason(deployment: DeploymentStatusOverview) -> str:
    """Returns the line that says what failed, or nothing. Ray's message begins with the replica's stack trace."""
    lines = [line for line in deployment.message.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
