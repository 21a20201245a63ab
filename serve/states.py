"""What Ray Serve says of the replicas of an application: which are well, and why one could not be started."""

from collections.abc import Callable

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.schema import DeploymentStatusOverview

from serve.errors import RequestError

# By deployment: its status as Ray Serve names it, and the reason.
States = dict[str, dict[str, str]]


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
