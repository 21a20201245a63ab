"""AdamW for everything, or Muon for the hidden matrices beside it; and the learning-rate schedule."""

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with β = (0.9, 0.95); vectors (norms, biases) do not decay."""
    return AdamW(_groups(model.parameters(), weight_decay), lr=learning_rate, betas=(0.9, 0.95), fused=True)


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate_factor(step: int, steps: int, warmup_share: float, decay_share: float) -> float:
    """Warm-up, stable, linear decay (WSD, Hu et al. 2024): the factor for step 0 to steps - 1, in (0, 1]."""
    warmup = max(1, round(steps * warmup_share))
    decay = max(1, round(steps * decay_share))
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)
