"""The names in requests: a model's own, or an alias, whose requests are shared out at random among models.

An alias may have a shadow model, which gets the same requests and whose answers are discarded.
"""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.recipe.serve import CANARY, Alias, ModelName
from serve.canary import CanaryShare
from serve.errors import RequestError

# The alias of the generating model of the latest stage.
LATEST = "latest"


@dataclass(frozen=True)
class Route:
    """The model that answers a request, and perhaps another one whose answer is discarded."""

    model: str
    shadow: str | None = None


class Routes:
    """The names that clients may use: those of the models, and aliases.

    Args:
        models: the names of the served models.
        aliases: the aliases, by name.
        rng: chooses among the models of an alias.
        canary: chooses the requests for `latest` that a new policy on trial answers.

    Attributes:
        aliases: the aliases, by name.
    """

    def __init__(
        self,
        models: Collection[str],
        aliases: Mapping[str, Alias],
        rng: random.Random,
        canary: CanaryShare = CanaryShare(None, {}),
    ) -> None:
        self._models, self.aliases, self._rng, self._canary = models, aliases, rng, canary

    def find(self, name: Any, request: str = "") -> Route:
        """Returns the route of one request.

        Args:
            name: the name that the client gives.
            request: the request id; empty where a new policy may not answer.

        Raises:
            RequestError: 404, no model is served by this name; 400, it is not a name.
        """
        served = ", ".join([*self._models, *self.aliases])
        if not isinstance(name, str) or not name:
            raise RequestError(
                400, f"name the model to ask in the field `model`; served are {served}", "BadRequestError", "model"
            )
        if alias := self.aliases.get(name):
            (model,) = self._rng.choices(list(alias.models), list(alias.models.values()))
            tried = name == LATEST and model == "policy" and CANARY in self._models and self._canary.chooses(request)
            return Route(CANARY if tried else model, alias.shadow)
        if name not in self._models:
            raise RequestError(404, f"the model `{name}` is not served; served are {served}", "NotFoundError", "model")
        return Route(name)


def aliases_of(models: Collection[ModelName], given: Mapping[str, Alias]) -> dict[str, Alias]:
    """Returns the recipe's aliases and `latest`, the generating model of the latest stage.

    Args:
        models: the served models, in the order of their stages.
        given: the recipe's aliases.

    Raises:
        UserError: an alias names a model that is not served.
    """
    for name, alias in given.items():
        wanted = {*alias.models, *([alias.shadow] if alias.shadow else [])}
        if missing := sorted(wanted - set(models)):
            have = ", ".join(models)
            raise UserError(f"serve.aliases.{name} names {', '.join(missing)}; the run has finished only {have}")
    generating = [name for name in models if name != "reward"]
    return ({LATEST: Alias(models={generating[-1]: 1})} if generating else {}) | dict(given)
