"""Estimators of the KL divergence of the policy π from the reference ρ, from tokens that were drawn (Schulman 2020,
joschu.net/blog/kl-approx.html), and losses whose gradients follow it.

An estimator of the divergence's value is in general no loss: its expected gradient is not the divergence's (Tang and
Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL"; Shah et al. 2025, "A comedy of
estimators").
"""

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes log π/ρ of drawn tokens: unbiased for KL(π, ρ), and may be negative."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes ½ (log π/ρ)²: biased for KL(π, ρ), of low variance."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes (ρ/π - 1) - log ρ/π: unbiased for KL(π, ρ), never negative, of low variance."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


DIVERGENCES = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def divergence_losses(
    estimator: str, logprobs: Tensor, ref_logprobs: Tensor, completion_mask: Tensor, weights: Tensor
) -> Tensor:
    """Computes a loss of each drawn token for KL(π, ρ); the value is the estimator's. [N, T].

    - k1: the gradient at a token is ∇log π times the sum of log π/ρ from it to the answer's end. On-policy its
      expectation is the gradient of the answers' KL(π, ρ): the policy gradient with k1 as a cost, without the
      normalization that a cost in the reward goes through.
    - k2: ∇log π times log π/ρ of the token alone: the gradient of KL(π, ρ) at each token, with the tokens before it
      given. It leaves out that a token decides which ones follow.
    - k3: ∇log π times 1 - ρ/π: the gradient of KL(ρ, π) at each token, which is near that of KL(π, ρ) only where the
      two are near each other.

    Args:
        estimator: a name of `DIVERGENCES`.
        logprobs: [N, T], of the drawn tokens by the policy.
        ref_logprobs: [N, T].
        completion_mask: bool [N, T].
        weights: [N, T], without a gradient: importance weights of the policy relative to the weights that drew the
            tokens. A token's own weight alone does not correct how the tokens around it were drawn.
    """
    if estimator != "k1":
        return weights * DIVERGENCES[estimator](logprobs, ref_logprobs) * completion_mask
    gap = (logprobs - ref_logprobs).detach() * completion_mask
    following = gap.flip(1).cumsum(1).flip(1)
    # Zero, with the gradient of log π.
    score = logprobs - logprobs.detach()
    return torch.where(completion_mask, weights * (gap + following * score), 0.0)
