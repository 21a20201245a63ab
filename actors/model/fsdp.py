"""How a model and its loss are spread over workers: FSDP2."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from actors.model.attention import set_attention


class WithLoss(nn.Module):
    """A model and its objective in one forward, so that FSDP gathers every parameter the loss touches."""

    def __init__(self, model: Any, objective: Any) -> None:
        super().__init__()
        set_attention(model)
        self.model = model
        self.objective = objective

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return self.objective.loss(self.model, batch)

    def generate(self, **settings: Any) -> Tensor:
        """What the model writes: transformers' `generate`."""
        return self.model.generate(**settings)


class FSDPModule(nn.Module):
    """A model of which functions of it are computed: FSDP gathers its parameters around each.

    With several workers, every one calls the same functions in the same order.

    Args:
        autocast: the context of every call.
    """

    def __init__(
        self, model: Any, workers: int, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__()
        self._autocast = autocast
        self.model = model.to(device)
        if workers > 1:
            # Otherwise those outside the layers would stay gathered after a pass without gradients.
            _shard(self, workers, device, reshard_after_forward=True)

    def forward(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        with self._autocast():
            return function(self.model, *arguments, **settings)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which every worker holds a part; every worker has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of them whole and on the CPU, where they share memory with those that lie there already; one by one, on
    every worker, of which one will `keep` them."""
    every = ((name, full_tensor(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in every if keep}


def spread_like(tensor: Tensor, own: Tensor) -> Tensor:
    """This worker's part of a tensor that is whole, as `own` is a part of one."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def shard(model: WithLoss, workers: int, device: torch.device) -> WithLoss:
    """Shards parameters, gradients and optimizer state over the workers; one worker keeps them whole."""
    if workers == 1:
        return model
    _shard(model, workers, device)
    register_fsdp_forward_method(model, "generate")
    return model


def _shard(holder: Any, workers: int, device: torch.device, reshard_after_forward: bool | None = None) -> None:
    """Each layer of the model that it holds on its own, then the rest."""
    mesh = init_device_mesh(device.type, (workers,))
    for layer in holder.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(holder, mesh=mesh, reshard_after_forward=reshard_after_forward)
