"""The optimizers, AdamW alone or with Muon for the hidden matrices, and the learning-rate schedule."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from actors.model.lora import is_adapter
from actors.model.perf import native_precision
from cluster.recipe.base import Decayed

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class AdamSettings:
    """Settings of AdamW beyond the learning rate and the strength of weight decay.

    Attributes:
        betas: decay rates of the two moments.
        epsilon: is added to the root of the second moment.
        decayed: the parameters that weight decay applies to: all matrices, those inside layers, or everything.
    """

    betas: tuple[float, float] = BETAS
    epsilon: float = 1e-8
    decayed: Decayed = "matrices"


def adamw(
    parameters: list[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    constant: Collection[nn.Parameter] = (),
    settings: AdamSettings = AdamSettings(),
) -> Optimizer:
    """Makes AdamW (Loshchilov and Hutter 2019) for the trained parameters.

    Vectors (norms, biases) do not decay unless everything does, and those in `constant` never do.
    """
    trained, constant = [p for p in parameters if p.requires_grad], set(constant)
    decaying = [p for p in trained if (p.ndim >= 2 or settings.decayed == "all") and p not in constant]
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": [p for p in trained if p not in set(decaying)], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, betas=settings.betas, eps=settings.epsilon, fused=True)


def muon_and_adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    adam: AdamSettings = AdamSettings(),
) -> list[Optimizer]:
    """Makes Muon (Jordan et al. 2024) for the matrices inside layers, AdamW for embeddings, heads and vectors.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so that both take one learning rate. Of
    experts that are one tensor [experts, n, m], each is a matrix of its own.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = [(name, p) for name, p in trained if ".layers." in name and not name.endswith("bias")]
    inside = [p for _, p in layers if p.ndim == 2]
    experts = [p for name, p in layers if p.ndim == 3 and ".experts." in name]
    chosen = {*inside, *experts}
    others = [p for _, p in trained if p not in chosen]
    kind = Muon if native_precision(inside[0].device) == "bfloat16" else MuonInFloat32
    settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [
        kind(inside, **settings),
        *([MuonOfExperts(experts, **settings)] if experts else []),
        adamw(others, learning_rate, weight_decay, _constant(model, adam), adam),
    ]


def make_optimizers(
    model: nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float,
    adam: AdamSettings = AdamSettings(),
) -> list[Optimizer]:
    """Makes the optimizers of a recipe's `optimizer`: adamw or muon."""
    if name == "muon":
        return muon_and_adamw(model, learning_rate, weight_decay, adam)
    return [adamw(list(model.parameters()), learning_rate, weight_decay, _constant(model, adam), adam)]


def _constant(model: nn.Module, adam: AdamSettings) -> set[nn.Parameter]:
    """Returns the parameters that must not decay: embeddings beside adapters, of which only some rows are trained; and,
    if only matrices inside layers decay, those outside."""
    named = dict(model.named_parameters())
    beside = {p for name, p in named.items() if not is_adapter(name)} if any(map(is_adapter, named)) else set()
    return beside | {p for name, p in named.items() if adam.decayed == "layers" and ".layers." not in name}


def learning_rate_factor(
    step: int, steps: int, warmup_share: float, decay_share: float, schedule: str = "wsd", minimum: float = 0.0
) -> float:
    """Computes the factor on the learning rate for step 0 to steps - 1, in (0, 1], after a linear warm-up.

    wsd stays at 1 and falls linearly over the last `decay_share` of the steps (warm-up, stable, decay: Hu et al. 2024).
    cosine falls from the warm-up on (Loshchilov and Hutter 2017, eq. 5, without restarts) and ignores `decay_share`.
    Both would reach `minimum` at the step after the last.
    """
    warmup = max(1, round(steps * warmup_share))
    rising = (step + 1) / warmup
    if schedule == "cosine":
        progress = max(0, step - warmup + 1) / max(1, steps - warmup + 1)
        falling = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        falling = min(1.0, (steps - step) / max(1, round(steps * decay_share)))
    return min(rising, minimum + (1 - minimum) * falling)


class MuonInFloat32(Muon):
    """Muon for processors without bfloat16 instructions: PyTorch's, but iterating in the gradients' precision.

    PyTorch's own iteration is always in bfloat16; with 2.5M parameters on two cores that have AVX2 alone, a step of
    training took 5 s in place of 1. State and settings are PyTorch's, so that a checkpoint fits both. Nesterov's
    momentum and AdamW's step size, as `muon_and_adamw` asks for.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step of Jordan et al. 2024, scaled as in Liu et al. 2025, eq. 4; returns the loss of a closure."""
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
                parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(parameter.shape[-2:]) ** 0.5)
        return loss


class MuonOfExperts(MuonInFloat32):
    """Muon for stacks of matrices [experts, n, m], which PyTorch's refuses; the iteration is in float32."""

    def __init__(self, stacks: list[nn.Parameter], **settings: Any) -> None:
        # PyTorch's settings, by way of a matrix that it takes.
        Optimizer.__init__(self, stacks, Muon([nn.Parameter(torch.zeros(1, 1))], **settings).defaults)


def _orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Brings singular values to about 1 by the quintic Newton-Schulz iteration. [..., n, m] -> [..., n, m]."""
    a, b, c = coefficients
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
