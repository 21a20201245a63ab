"""How many replicas a deployment has: what the recipe says, in Ray Serve's terms."""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.schema import DeploymentStatusOverview

from cluster.recipe.serve import Serve
from serve.errors import RequestError

REQUESTS = "requests"
# Load has to last so long before another replica starts; counts come as often, and their mean over some counts.
UPSCALE_SECONDS = 4.0
COUNT_SECONDS = 2.0
MEAN_SECONDS = 8.0


def replica_options(settings: Serve) -> dict[str, Any]:
    """A deployment's options for the number of its replicas.

    Ray Serve's own count of requests would be that of connections: it is told the real one by the replicas.
    """
    if settings.min_replicas == settings.max_replicas:
        return {"num_replicas": settings.max_replicas}
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        # One at least, so that a model that cannot be loaded is found out at the start.
        initial_replicas=max(1, settings.min_replicas),
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.target_requests,
        metrics_interval_s=COUNT_SECONDS,
        look_back_period_s=MEAN_SECONDS,
        upscale_delay_s=UPSCALE_SECONDS,
        downscale_delay_s=settings.idle_seconds,
        policy=AutoscalingPolicy(policy_function=replicas_wanted),
    )
    return {"autoscaling_config": scaling}


def replicas_wanted(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As many replicas as have the target of requests each. Bounds and delays are Ray Serve's to apply."""
    counts = (context.aggregated_metrics or {}).get(REQUESTS)
    if not counts:
        # Those that are starting do not count yet, and are still wanted.
        return context.target_num_replicas, {}
    settings: Any = context.config
    return sum(counts.values()) / settings.target_ongoing_requests, {}


# By deployment: its status as Ray Serve names it, and the reason.
States = dict[str, dict[str, str]]


# What Ray Serve says of the replicas of an application: which are well, and why one could not be started.
def states_of(application: str) -> Callable[[], States]:
    """What asks Ray Serve, on whose cluster this process must be; a RequestError says that its controller is away."""

    def ask() -> States:
        try:
            deployments = serve.status().applications[application].deployments
        except (KeyError, RayActorError) as error:
            message = "Ray Serve's controller is being started again: try once more in some seconds"
            raise RequestError(503, message, "ServiceUnavailableError") from error
        return {name: {"status": one.status.value, "why": reason(one)} for name, one in deployments.items()}

    return ask


def reason(deployment: DeploymentStatusOverview) -> str:
    """The line that says what went wrong, or nothing: Ray's message also carries the replica's stack trace."""
    lines = [line for line in deployment.message.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
