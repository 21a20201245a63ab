"""From the name in a request to the model that answers, and the one that is asked besides."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.failures import UserError
from cluster.serve_recipe import Alias, Served
from serve.errors import RequestError


@dataclass(frozen=True)
class Route:
    """Who is asked: a model, and perhaps another one whose answer goes nowhere."""

    model: str
    shadow: str | None = None


class Routes:
    """The names that clients may use: the models' own, and aliases, whose requests are shared out by chance.

    Args:
        models: the names of those that are served.
        aliases: more names.
        chance: whose turn it is.
    """

    def __init__(self, models: Collection[str], aliases: Mapping[str, Alias], chance: random.Random) -> None:
        self._models, self._aliases, self._chance = models, aliases, chance

    def find(self, name: Any) -> Route:
        """The route of one request.

        Raises:
            RequestError: no model is served by this name, or no name is given.
        """
        served = ", ".join([*self._models, *self._aliases])
        if not isinstance(name, str) or not name:
            raise RequestError(
                400, f"name the model to ask in the field `model`; served are {served}", "BadRequestError", "model"
            )
        if alias := self._aliases.get(name):
            (model,) = self._chance.choices(list(alias.models), list(alias.models.values()))
            return Route(model, alias.shadow)
        if name not in self._models:
            raise RequestError(404, f"the model `{name}` is not served; served are {served}", "NotFoundError", "model")
        return Route(name)


def aliases_of(models: Collection[Served], given: Mapping[str, Alias]) -> dict[str, Alias]:
    """The recipe's, and `latest`: the model that has gone furthest through the stages that make one write.

    Args:
        models: those that are served, in the order of the stages.
        given: the recipe's.

    Raises:
        UserError: the recipe names a model that is not served.
    """
    for name, alias in given.items():
        wanted = {*alias.models, *([alias.shadow] if alias.shadow else [])}
        if missing := sorted(wanted - set(models)):
            have = ", ".join(models)
            raise UserError(f"serve.aliases.{name} names {', '.join(missing)}; the run has finished only {have}")
    writing = [name for name in models if name != "reward"]
    return ({"latest": Alias(models={writing[-1]: 1})} if writing else {}) | dict(given)
