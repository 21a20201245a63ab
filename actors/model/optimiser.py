"""AdamW for everything, or Muon for the hidden matrices beside it; and the learning-rate schedule."""

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

BETAS = (0.9, 0.95)


def adamw(parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019); vectors (norms, biases) do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def muon_and_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the layers, AdamW for embeddings, heads and vectors.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so that both take one learning rate.
    """
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = set(inside)
    others = [p for p in model.parameters() if p not in chosen]
    return [
        Muon(inside, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        adamw(others, learning_rate, weight_decay),
    ]


def optimisers(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """The optimisers of a recipe's `optimiser`: adamw or muon."""
    if name == "muon":
        return muon_and_adamw(model, learning_rate, weight_decay)
    return [adamw(list(model.parameters()), learning_rate, weight_decay)]


def learning_rate_factor(step: int, steps: int, warmup_share: float, decay_share: float) -> float:
    """Warm-up, stable, linear decay (WSD, Hu et al. 2024): the factor for step 0 to steps - 1, in (0, 1]."""
    warmup = max(1, round(steps * warmup_share))
    decay = max(1, round(steps * decay_share))
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)
