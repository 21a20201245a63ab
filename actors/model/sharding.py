"""How a model and its loss are spread over workers: FSDP2."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method


class WithLoss(nn.Module):
    """A model and its objective in one forward, so that FSDP gathers every parameter the loss touches."""

    def __init__(self, model: Any, objective: Any) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return self.objective.loss(self.model, batch)

    def generate(self, **settings: Any) -> Tensor:
        """What the model writes: transformers' `generate`."""
        return self.model.generate(**settings)


def shard(model: WithLoss, workers: int, device: torch.device) -> WithLoss:
    """Shards parameters, gradients and optimiser state over the workers; one worker keeps them whole."""
    if workers == 1:
        return model
    mesh = init_device_mesh(device.type, (workers,))
    for layer in model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "generate")
    return model
