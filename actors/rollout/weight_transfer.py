"""The receiving side of vLLM's weight transfer protocol, inside vLLM's worker: in the process of a rollout actor, or in
one of the processes of an engine over several devices.

vLLM imports this module wherever it starts a worker, by the name of the class (`worker_extension_cls`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import ray
import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from actors.compat import load_layerwise
from actors.model.lora import merge_into
from actors.rollout.weights import digest, live_digest, mismatch, stored, stripes, unpack

BACKEND = "object_store"


@lru_cache(1)
def base_weights(folder: Path) -> dict[str, Tensor]:
    """Opens the weights that adapters are merged into, once a process: views of the files, in the memory that all
    processes of a node share."""
    return dict(stored(folder))


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    """Holds nothing: every Ray process is connected to the object store."""


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    """Names the tensors to fetch: in the object store, or in a file for the workers of an engine that has several,
    which have no connection to Ray.

    Attributes:
        refs: one reference as of `weights.publish`; none where there is a file.
        version: the version of the weights.
        dtype: the element type of the tensors.
        base: the folder of the weights that adapters are to be merged into; None if the tensors are whole weights.
        file: safetensors on this node.
    """

    refs: list[ray.ObjectRef]
    version: int
    dtype: torch.dtype
    base: Path | None = None
    file: Path | None = None


class ObjectStoreTransfer(WeightTransferEngine[ObjectStoreInit, ObjectStoreUpdate]):
    """Fetches one version of the weights from Ray's object store and loads it.

    All happens in `receive_weights`, as vLLM allows; the start and the end of an update have nothing left to do.
    """

    init_info_cls = ObjectStoreInit
    update_info_cls = ObjectStoreUpdate

    def init_transfer_engine(self, init_info: ObjectStoreInit) -> None:
        """Connects nothing."""

    def start_weight_update(self) -> None:
        """Prepares nothing."""

    def finish_weight_update(self) -> None:
        """Leaves nothing to finish."""

    def shutdown(self) -> None:
        """Releases nothing."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives weights as the base class does, but synchronizes an accelerator only where there is one."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        """Loads whole weights, or merges adapters into the base weights and loads the sum.

        Raises:
            RuntimeError: the model does not compute with the weights that adapters were merged into.
        """
        base = update_info.base
        if update_info.file is None:
            (packed,) = ray.get(update_info.refs)
            received = unpack(packed, update_info.dtype)
        else:
            received = load_file(update_info.file)
        if base is None:
            load_layerwise(self.model, self.model_config, received.items())
            return
        proof: list[tuple[str, Tensor]] = []
        dtype = cast(torch.dtype, self.model_config.dtype)
        weights = merge_into(base_weights(base).items(), received, dtype)
        merged = self._recorded(weights, update_info.version, proof)
        load_layerwise(self.model, self.model_config, merged)
        if (wrong := mismatch(digest(proof), live_digest(self.model, update_info.version))) is not None:
            raise RuntimeError(f"with adapters, the engine computes with other weights in {wrong}")

    def _recorded(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, proof: list[tuple[str, Tensor]]
    ) -> Iterator[tuple[str, Tensor]]:
        """Passes tensors on, and adds a copy of the version's stripe of each to `proof`."""
        for name, tensor in tensors:
            part = stripes([(name, tensor.to(self.model_config.dtype))], version)
            # Not the whole matrix, of which it is a view.
            proof += [(name, some.clone()) for name, some in part]
            yield name, tensor


# At the import, since a worker's process imports this module and nothing of the actor's.
WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreTransfer)


class RolloutWorker:
    """Methods added to vLLM's worker, called by name and in the worker's process.

    After an upgrade of vLLM, look at the worker's `model_runner`.
    """

    model_runner: Any

    def live_digest(self, stripe: int | None) -> dict[str, int]:
        """Returns `live_digest` of the worker's model; every worker has to be asked."""
        return live_digest(self.model_runner.get_model(), stripe)


EXTENSION = f"{RolloutWorker.__module__}.{RolloutWorker.__qualname__}"
