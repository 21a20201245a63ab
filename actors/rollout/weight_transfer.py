"""Loads other weights into a live vLLM model, for rollout actors and for serving, and proves what it computes with.

`ObjectStoreTransfer` is the receiving side of vLLM's weight transfer protocol, inside vLLM's worker.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from actors.compat import input_width, linear_layers, live_weight, load_layerwise, output_heads
from actors.model.lora import merge_into
from actors.rollout.weights import columns, digest, mismatch, stored, stripes, unpack

BACKEND = "object_store"


def reload_weights(model: Any, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Loads weights of the same shapes into a live vLLM model, and repacks each layer for its kernels.

    The engine must be idle, and has to forget its cached keys and values afterwards. `live_digest` then proves which
    weights the model computes with.

    Args:
        model: the model of vLLM's worker.
        config: vLLM's configuration of it.
        tensors: Hugging Face names and tensors.
    """
    load_layerwise(model, config, iter(tensors))


def live_digest(model: nn.Module, stripe: int | None = None) -> dict[str, int]:
    """Returns `digest` of the weights that a vLLM model computes with at this moment, or of a stripe of their columns.

    A weight that a CPU kernel holds in a format of its own is read back from the kernel: see `live_weight`.
    """
    return digest(_live_weights(model, stripe))


def _live_weights(model: nn.Module, stripe: int | None) -> Iterator[tuple[str, Tensor]]:
    packed = {f"{name}.weight": layer for name, layer in linear_layers(model).items()}
    heads = {f"{name}.weight": head for name, head in output_heads(model).items()}
    for name, parameter in model.named_parameters():
        if name in heads:
            yield name, live_weight(heads.pop(name), parameter, columns(parameter.shape[1], stripe))
        elif parameter.numel():
            yield from stripes([(name, parameter)], stripe)
        else:
            layer = packed[name]
            like = torch.empty(0, input_width(layer), dtype=parameter.dtype)
            yield name, live_weight(layer, like, columns(like.shape[1], stripe))
    for name, head in heads.items():
        # What is left is tied, and its weight already counted; should the kernel disagree, it shows as a module more.
        tied = head.get_parameter("weight")
        chosen = columns(tied.shape[1], stripe)
        weight = live_weight(head, tied, chosen)
        if not torch.equal(weight, tied[:, chosen]):
            yield name, weight


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    """Holds nothing: every Ray process is connected to the object store."""


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    """Names the tensors to fetch.

    Attributes:
        refs: one reference as of `weights.publish`.
        version: the version of the weights.
        dtype: the element type of the tensors.
        base: the folder of the weights that adapters are to be merged into; None if the tensors are whole weights.
    """

    refs: list[ray.ObjectRef]
    version: int
    dtype: torch.dtype
    base: Path | None = None


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
        """Does as the base class, which synchronizes an accelerator even where there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        """Loads whole weights, or merges adapters into the base weights and loads the sum.

        Raises:
            RuntimeError: the model does not compute with the weights that adapters were merged into.
        """
        (packed,) = ray.get(update_info.refs)
        received, base = unpack(packed, update_info.dtype), update_info.base
        if base is None:
            reload_weights(self.model, self.model_config, received.items())
            return
        proof: list[tuple[str, Tensor]] = []
        merged = self._recorded(merge_into(stored(base), received), update_info.version, proof)
        reload_weights(self.model, self.model_config, merged)
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
