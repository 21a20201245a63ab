"""A LoRA adapter served as a model of its own, by the engine of the model that it adapts.

Importing this file does not import vLLM.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from cluster.recipe.serve import Serve
from cluster.run.folder import file_fingerprint, fingerprint
from cluster.run.versions import Version, live_version
from serve.transport.messages import Endpoint, Part, PromotionResult, ResponseStart

if TYPE_CHECKING:
    from serve.replica.vllm_engine import VllmEngine

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class LoraModel:
    """An adapter as a `ServedModel`: requests go to the engine that loaded it.

    Args:
        name: the name that clients use, and that the engine knows the adapter by.
        weights: the version that the engine has loaded.
        engine: the engine of the model that it adapts.
    """

    def __init__(self, name: str, weights: str, engine: "VllmEngine") -> None:
        self._name, self._weights, self._engine = name, weights, engine

    async def answer(self, endpoint: Endpoint, body: dict[str, Any]) -> AsyncGenerator[Part]:
        """Answers by the engine, with the adapter's version as that of the weights."""
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

    async def promote(self, folder: Path, weights: str) -> PromotionResult:
        """Loads another version beside the one that is served. Answers in progress end with the one that they began
        with, so that none is of both."""
        if (found := await asyncio.to_thread(adapter_checksum, folder)) != weights:
            return PromotionResult(0.0, error=f"{folder} has the checksum {found} and not {weights}")
        result = await self._engine.load_adapter(self._name, folder)
        if not result.error:
            self._weights = weights
        return result

    def weights_version(self) -> str:
        """Returns the version of the adapter that new requests are answered with."""
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
    """Returns the checksum of an adapter's files, which is its version: the same matrices with another `lora_alpha` are
    another adapter."""
    return fingerprint({name: file_fingerprint(folder / name) for name in (CONFIG, WEIGHTS)})


def live_adapter(folder: Path) -> Version:
    """Finds the live version in an adapter's `served` folder; any other folder is the only version of its adapter."""
    return live_version(folder) if (folder / "versions.json").exists() else Version(folder, adapter_checksum(folder))


def adapters_of(model: str, section: Serve) -> dict[str, Path]:
    """Returns the folders of a model's adapters, by their names."""
    return {name: Path(one.path).absolute() for name, one in section.adapters.items() if one.model == model}


def with_adapters(section: Serve, folders: Mapping[str, Path]) -> Serve:
    """Returns the section with other folders for its adapters, by their names."""
    moved = {name: one.model_copy(update={"path": str(folders[name])}) for name, one in section.adapters.items()}
    return section.model_copy(update={"adapters": moved})


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
        require_adapter(f"serve.adapters.{name}", folder)


def require_adapter(name: str, folder: Path) -> str:
    """Returns the checksum of the adapter in a folder.

    Args:
        name: the adapter, for the message.
        folder: in PEFT's format.

    Raises:
        UserError: a file of an adapter is missing or cannot be read.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"{name}: {folder} holds no {file}, which PEFT's `save_pretrained` writes")
    try:
        return adapter_checksum(folder)
    except OSError as error:
        raise UserError(f"{name}: {folder} cannot be read: {error.strerror}") from error


def adapter_rank(folder: Path) -> int:
    """Returns the rank of an adapter's matrices.

    Raises:
        UserError: its configuration does not give it.
    """
    try:
        return int(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} does not give the adapter's rank `r`") from error
