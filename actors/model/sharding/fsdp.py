"""Shards models and their losses over workers by FSDP2, and gathers full tensors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from actors.model.attention.packed import set_attention
from actors.model.dropout import without_dropout
from actors.model.parts import layers_of
from actors.model.sharding.weights import fill, is_empty, shard_like, take_real


class WithLoss(nn.Module):
    """A model and its objective in one forward pass, so that FSDP gathers every parameter that the loss touches."""

    def __init__(self, model: Any, objective: Any) -> None:
        super().__init__()
        set_attention(model)
        self.model = model
        self.objective = objective

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of training or of evaluation; the objective decides whether dropout is a part of training."""
        super().train(mode)
        if mode and not self.objective.dropout:
            without_dropout(self.model)
        return self

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return self.objective.loss(self.model, batch)

    @contextmanager
    def measuring(self, objective: Any) -> Iterator[Any]:
        """Makes the forward pass compute another objective for as long as the context lasts, and yields it."""
        before, self.objective = self.objective, objective
        try:
            yield objective
        finally:
            self.objective = before

    def generate(self, **settings: Any) -> Tensor:
        """Generates tokens by transformers' `generate`."""
        return self.model.generate(**settings)


class ShardedModel(nn.Module):
    """A model whose forward pass is any function of it: FSDP gathers its parameters around each call.

    With several workers, every one calls the same functions in the same order.

    Args:
        autocast: makes the context of every call.
    """

    def __init__(
        self, model: Any, world_size: int, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__()
        self._autocast = autocast
        self.model = model
        # Otherwise those outside the layers would stay gathered after a pass without gradients.
        _shard(self, world_size, device, reshard_after_forward=True)

    def forward(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        with self._autocast():
            return function(self.model, *arguments, **settings)


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns all of a tensor of which every worker holds a part; every worker has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_to_cpu(tensors: Mapping[str, Tensor], keep: bool, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Gathers full tensors one by one, and returns them on the CPU where `keep` is set; every worker has to call it.

    Those that lie on the CPU already, in the element type that is asked for, share their memory with the result.
    """
    full = ((name, full_tensor(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in full if keep}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter, once: tied ones have one name in `named_parameters`.

    These are the weights that engines are sent. Buffers, such as the constants of an activation, do not change in
    training: engines have read them with the model's folder, and vLLM may keep them under other names or not at all.
    """
    return {name: value.detach() for name, value in model.named_parameters()}


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter that is trained, once."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def set_trained(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Sets parameters that are trained to values, which are full tensors or sharded in the same way."""
    for name, own in trained(model).items():
        if name in values:
            value = values[name]
            own.copy_(value if isinstance(value, DTensor) else shard_like(value, own))


def shard(model: WithLoss, world_size: int, device: torch.device) -> WithLoss:
    """Moves a model to the device, and shards parameters, gradients and optimizer state over the workers; a lone worker
    keeps full tensors. An `empty_model` is filled."""
    _shard(model, world_size, device)
    if world_size > 1:
        register_fsdp_forward_method(model, "generate")
    return model


def _shard(module: Any, world_size: int, device: torch.device, reshard_after_forward: bool | None = None) -> None:
    """Shards each layer of the module's model on its own, then the rest."""
    empty = is_empty(module.model)
    real = take_real(module.model) if empty else {}
    if world_size == 1:
        module.to(device)
        return
    # A model that is not empty lies on the CPU, and goes to the device layer by layer as it is sharded.
    mesh = init_device_mesh(device.type, (world_size,))
    for layer in layers_of(module.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    if empty:
        fill(module, module.model, device, real)
