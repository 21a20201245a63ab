"""The receiving side of a weight transfer inside vLLM's worker, from Ray's object store."""

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
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.model.lora import added
from actors.rollout.weights import columns, digest, mismatch, stored, stripes, unpack

BACKEND = "object_store"


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    """The object store needs no introduction: every Ray process is connected to it."""


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    """What to fetch: one reference as of `weights.publish`, the version and element type of its tensors, and where the
    weights lie that they are adapters of, if they are."""

    refs: list[ray.ObjectRef]
    version: int
    dtype: torch.dtype
    base: Path | None = None


class ObjectStoreTransfer(WeightTransferEngine[ObjectStoreInit, ObjectStoreUpdate]):
    """Fetches the tensors and loads them layer by layer, repacking each for the kernels as at the first load."""

    init_info_cls = ObjectStoreInit
    update_info_cls = ObjectStoreUpdate
    # Of the version's stripe of the weights that adapters were merged into, what the model has to compute with.
    proof: list[tuple[str, Tensor]] | None = None
    version: int = 0

    def init_transfer_engine(self, init_info: ObjectStoreInit) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Takes the repacked layers apart, so that plain tensors can be loaded."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, which synchronizes an accelerator that a CPU has not."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        """Loads one set of tensors."""
        (packed,) = ray.get(update_info.refs)
        received, base = unpack(packed, update_info.dtype), update_info.base
        model: Any = self.model
        self.proof, self.version = None, update_info.version
        if base is None:
            model.load_weights(iter(received.items()))
        else:
            self.proof = []
            model.load_weights(self._noted(added(stored(base), received), self.proof))

    def _noted(
        self, tensors: Iterable[tuple[str, Tensor]], proof: list[tuple[str, Tensor]]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            part = stripes([(name, tensor.to(self.model_config.dtype))], self.version)
            # Not the whole matrix, of which it is a view.
            proof += [(name, some.clone()) for name, some in part]
            yield name, tensor

    def finish_weight_update(self) -> None:
        """Repacks what is left and puts the layers back.

        Raises:
            RuntimeError: the model does not compute with the weights that adapters were merged into.
        """
        finish_reload(self.model, self.model_config)
        if self.proof is None:
            return
        if (wrong := mismatch(digest(self.proof), live_digest(self.model, self.version))) is not None:
            raise RuntimeError(f"with adapters, the engine computes with other weights in {wrong}")
        self.proof = None

    def shutdown(self) -> None:
        """Nothing to release."""


def finish_reload(model: Any, config: ModelConfig) -> None:
    """Ends what `initialize_layerwise_reload` began, once the tensors are loaded."""
    finalize_layerwise_reload(model, config)
    for head in _heads(model).values():
        # A head tied to the embeddings is sent no weights, so that vLLM leaves the CPU kernel's copy as it was.
        assert head.quant_method is not None
        head.quant_method.process_weights_after_loading(head)


def live_digest(model: nn.Module, stripe: int | None = None) -> dict[str, int]:
    """`digest` of the weights that an engine computes with at this moment, or of a stripe of them.

    On CPUs vLLM hands a linear layer's weight to its kernel in a format of the kernel's own and leaves an empty tensor
    behind, so that a checksum of the parameters would say nothing of most of the model. The layer applied to the
    identity gives every weight back exactly: one product with 1, and sums of zeros.
    """
    return digest(_live_weights(model, stripe))


def _live_weights(model: nn.Module, stripe: int | None) -> Iterator[tuple[str, Tensor]]:
    packed = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}
    heads = {f"{name}.weight": head for name, head in _heads(model).items()}
    for name, parameter in model.named_parameters():
        if name in heads:
            yield name, _applied(heads.pop(name), parameter, stripe)
        elif parameter.numel():
            yield from stripes([(name, parameter)], stripe)
        else:
            layer: Any = packed[name]
            like = torch.empty(0, layer.input_size_per_partition, dtype=parameter.dtype)
            yield name, _applied(layer, like, stripe)
    for name, head in heads.items():
        # What is left is tied, and its weight already counted; should the kernel disagree, it shows as a module more.
        tied = head.get_parameter("weight")
        weight = _applied(head, tied, stripe)
        if not torch.equal(weight, tied[:, columns(tied.shape[1], stripe)]):
            yield name, weight


def _applied(layer: LinearBase | ParallelLMHead, weight: Tensor, stripe: int | None) -> Tensor:
    """The stripe of the weight, shaped (outputs, inputs), that the layer multiplies with; `weight` is one of its type
    and width."""
    chosen = columns(weight.shape[1], stripe)
    if weight.device.type != "cpu":
        return weight[:, chosen]
    assert layer.quant_method is not None
    with torch.inference_mode():
        return layer.quant_method.apply(layer, torch.eye(weight.shape[1], dtype=weight.dtype)[chosen]).T


def _heads(model: nn.Module) -> dict[str, ParallelLMHead]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ParallelLMHead)}
