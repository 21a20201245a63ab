"""A model that is low-rank adapters beside another one, in whose engine it answers."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.recipe.serve import Serve
from cluster.run.folder import file_fingerprint
from serve.transport.messages import Endpoint, Part, Promoted, ResponseStart, Served

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class LoraModel:
    """Answers by the engine that loaded it.

    Args:
        name: what clients call it.
        folder: where it lies, in PEFT's format.
        engine: that of the model that it is beside.
    """

    def __init__(self, name: str, folder: Path, engine: Served) -> None:
        self._name, self._engine = name, engine
        self._weights = checksum(folder)

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """As `VllmEngine.answer`; the weights that it names are the adapter's."""
        async with aclosing(self._engine.answer(endpoint, body)) as parts:
            async for part in parts:
                yield ResponseStart(self._weights) if isinstance(part, ResponseStart) else part

    async def card(self) -> dict[str, Any]:
        """Its entry in `/v1/models`."""
        beside = await self._engine.card()
        return beside | {"id": self._name, "parent": beside["id"]}

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """As `VllmEngine.schemas`."""
        return self._engine.schemas()

    async def promote(self, *_: Any, **__: Any) -> Promoted:
        """Refuses."""
        return Promoted(0.0, error=f"{self._name} is an adapter: start the server again to load another one")

    def live(self) -> str:
        """The checksum of the adapter."""
        return self._weights

    def requests(self) -> int:
        """None: those of the adapter are counted by the engine that has them."""
        return 0

    async def check_health(self) -> None:
        """Nothing besides the engine."""

    def close(self) -> None:
        """Nothing besides the engine."""


def checksum(folder: Path) -> str:
    """Of an adapter: it names the version."""
    return file_fingerprint(folder / WEIGHTS)


def check_adapters(section: Serve, found: Mapping[str, Path]) -> None:
    """Whether a recipe's adapters can be served.

    Args:
        found: the folders of those that are beside a model of the run.

    Raises:
        UserError: one is not there, or its model is not.
    """
    for name, one in section.adapters.items():
        if name not in found:
            raise UserError(f"serve.adapters.{name} is beside {one.model}, which the run has not finished")
    for name, folder in found.items():
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise UserError(
                    f"serve.adapters.{name}: {folder} holds no {file}, which PEFT's `save_pretrained` writes"
                )


def rank_of(folder: Path) -> int:
    """How many directions an adapter adds to every matrix.

    Raises:
        UserError: its configuration does not say.
    """
    try:
        return int(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} does not tell the adapter's rank `r`") from error
