"""Muon for processors without instructions for bfloat16."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Muon


class MuonInFloat32(Muon):
    """PyTorch's Muon, whose own iteration is always in bfloat16, in the precision of the gradients.

    With 2.5M parameters on two cores that have AVX2 alone, a step of training took 5 s in place of 1. State and
    settings are PyTorch's, so that a checkpoint fits both. Nesterov's momentum and AdamW's step size, as
    `muon_and_adamw` asks for.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of Jordan et al. 2024, scaled as in Liu et al. 2025, eq. 4; the loss, of a closure that computes
        it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                direction = _orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
        return loss


def _orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The quintic Newton-Schulz iteration: singular values go to about 1. [n, m] -> [n, m]."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
