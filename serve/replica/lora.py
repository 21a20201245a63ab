"""A LoRA adapter served as a model of its own, by the engine of the model that it adapts."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.recipe.serve import Serve
from cluster.run.folder import file_fingerprint
from serve.transport.messages import Endpoint, Part, PromotionResult, ResponseStart, ServedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class LoraModel:
    """An adapter as a `ServedModel`: requests go to the engine that loaded it.

    Args:
        name: the name that clients use, and that the engine knows the adapter by.
        folder: its folder, in PEFT's format.
        engine: the engine of the model that it adapts.
    """

    def __init__(self, name: str, folder: Path, engine: ServedModel) -> None:
        self._name, self._engine = name, engine
        self._weights = adapter_checksum(folder)

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Answers by the engine, with the adapter's checksum as the version of the weights."""
        async with aclosing(self._engine.answer(endpoint, body)) as parts:
            async for part in parts:
                yield replace(part, weights=self._weights) if isinstance(part, ResponseStart) else part

    async def card(self) -> dict[str, Any]:
        """Returns its entry in `/v1/models`, which names the adapted model as its parent."""
        adapted = await self._engine.card()
        return adapted | {"id": self._name, "parent": adapted["id"]}

    def schemas(self) -> dict[Endpoint, dict[str, Any]]:
        """Returns the engine's schemas."""
        return self._engine.schemas()

    async def promote(self, *_: Any, **__: Any) -> PromotionResult:
        """Refuses: an adapter has no versions."""
        return PromotionResult(0.0, error=f"{self._name} is an adapter: start the server again to load another one")

    def weights_version(self) -> str:
        """Returns the checksum of the adapter."""
        return self._weights

    def requests(self) -> int:
        """Returns 0: the engine counts its adapters' requests with its own."""
        return 0

    def engine_state(self) -> None:
        """Returns None: the engine is its model's."""

    async def check_health(self) -> None:
        """Does nothing: the engine is checked by itself."""

    def close(self) -> None:
        """Does nothing: the engine is closed by itself."""


def adapter_checksum(folder: Path) -> str:
    """Returns the checksum of an adapter's weights, which serves as their version."""
    return file_fingerprint(folder / WEIGHTS)


def check_adapters(section: Serve, found: Mapping[str, Path]) -> None:
    """Checks that a recipe's adapters can be served.

    Args:
        section: the recipe's section.
        found: the folders of the adapters whose models the run has finished, by their names.

    Raises:
        UserError: an adapter's files, or the model that it adapts, are missing.
    """
    for name, one in section.adapters.items():
        if name not in found:
            raise UserError(f"serve.adapters.{name} adapts {one.model}, which the run has not finished")
    for name, folder in found.items():
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise UserError(
                    f"serve.adapters.{name}: {folder} holds no {file}, which PEFT's `save_pretrained` writes"
                )


def adapter_rank(folder: Path) -> int:
    """Returns the rank of an adapter's matrices.

    Raises:
        UserError: its configuration does not give it.
    """
    try:
        return int(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} does not give the adapter's rank `r`") from error
