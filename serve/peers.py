"""The gateways of one server, which reach each other by the handles of Ray Serve.

The first gateway changes versions and tells the others which ones are served. All tell each other what keys have used.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.errors import RequestError
from serve.http.limits import SHARE_SECONDS, KeyUse
from serve.promotions import Action

logger = logging.getLogger("ray.serve")

USE_SECONDS = 2.0
# The most seconds for a gateway that has died to be replaced, and to confirm a version.
ANNOUNCE_SECONDS = 30.0
CHANGE_SECONDS = 600.0


class KeyUser(Protocol):
    """The part of a gateway's `Middleware` that reports and takes the use of keys."""

    def key_use(self) -> KeyUse:
        """Returns the use of keys in this process."""

    def merge_key_use(self, number: int, use: KeyUse | None) -> None:
        """Counts the use of keys in another gateway too; None if it does not answer."""


class Peers:
    """The gateways of a server, of which this process is one.

    Args:
        names: the names of the gateways' deployments.
        number: the place of this one among them.
        application: the name of their application in Ray Serve.
    """

    def __init__(self, names: Sequence[str], number: int, application: str) -> None:
        self.number, self._names, self._application = number, names, application
        self._handles: dict[str, DeploymentHandle] = {}

    @property
    def is_first(self) -> bool:
        """Whether this is the gateway that promotes."""
        return self.number == 0

    def _handle_of(self, name: str) -> DeploymentHandle:
        # Not in the constructor: Ray Serve may not know of the others yet.
        if name not in self._handles:
            self._handles[name] = serve.get_deployment_handle(name, self._application)
        return self._handles[name]

    async def announce(self, model: str, weights: str) -> list[str]:
        """Makes a version known to all others, and returns the names of those that did not confirm it in time."""
        others = [name for number, name in enumerate(self._names) if number != self.number]
        confirmations = await asyncio.gather(*(self._announce_to(name, model, weights) for name in others))
        return [name for name, confirmed in zip(others, confirmations, strict=True) if not confirmed]

    async def _announce_to(self, name: str, model: str, weights: str) -> bool:
        end = asyncio.get_running_loop().time() + ANNOUNCE_SECONDS
        try:
            async with asyncio.timeout_at(end):
                # A gateway that dies meanwhile is tried again when it has been replaced.
                while not await self._attempt(name, model, weights):
                    await asyncio.sleep(SHARE_SECONDS)
        except TimeoutError:
            logger.error("%s did not confirm the weights %s of %s", name, weights, model)
            return False
        return True

    async def _attempt(self, name: str, model: str, weights: str) -> bool:
        try:
            await self._handle_of(name).show_weights.remote(model, weights)
        except (RayError, RayServeException):
            return False
        return True

    async def change(self, action: Action, model: str, version: str | None, by: str) -> dict[str, Any]:
        """Asks the first gateway to change a version, as `Promotions.change` does.

        Raises:
            RequestError: that of `Promotions.change`; or 503, the first gateway does not answer.
        """
        try:
            async with asyncio.timeout(CHANGE_SECONDS):
                status, body = await self._handle_of(self._names[0]).change.remote(action, model, version, by)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.error("the first gateway did not answer", exc_info=error)
            message = "the gateway that promotes cannot be reached just now; look at /admin/versions and try again"
            raise RequestError(503, message, "ServiceUnavailableError", retry_after=1) from error
        if status != 200:
            raise RequestError(status, body["message"], body["type"], body["param"])
        return dict(body)

    async def share(self, keys: KeyUser) -> None:
        """Asks every other gateway for its use of keys, until it is cancelled."""
        others = [number for number in range(len(self._names)) if number != self.number]
        while others:
            await asyncio.sleep(SHARE_SECONDS)
            await asyncio.gather(*(self._ask(number, keys) for number in others))

    async def _ask(self, number: int, keys: KeyUser) -> None:
        try:
            async with asyncio.timeout(USE_SECONDS):
                use = await self._handle_of(self._names[number]).key_use.remote()
        except (RayError, RayServeException, TimeoutError):
            use = None
        keys.merge_key_use(number, use)
