"""Expected gradients of the KL estimators over all answers of a small autoregressive policy."""

import math

import pytest
import torch
from torch import Tensor

from actors.algorithms.divergence import DIVERGENCES, divergence_losses
from actors.algorithms.losses import importance_weights
from cluster.recipe.rlhf.regularization import Importance

# Three tokens. The first one ends an answer at once, the others are followed by one more.
END, TOKENS = 0, 3
ANSWERS = [(END,), *((first, second) for first in (1, 2) for second in range(TOKENS))]
UNBOUNDED = Importance(max=1e9)


def table(seed: int, scale: float = 0.7) -> Tensor:
    """Returns logits of the first token, and of the second after each first one."""
    return scale * torch.randn(1 + TOKENS, TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logprobs_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens of all answers, and which there are. [N, 3], the first column a prompt's."""
    rows = logits.log_softmax(-1)
    zero = rows.new_zeros(())
    found = [
        torch.stack([zero, rows[0, answer[0]], rows[1 + answer[0], answer[1]] if len(answer) > 1 else zero])
        for answer in ANSWERS
    ]
    return torch.stack(found), torch.tensor([[False, True, len(answer) > 1] for answer in ANSWERS])


def expected_gradient(
    estimator: str, policy: Tensor, reference: Tensor, behavior: Tensor, bounds: Importance
) -> Tensor:
    logits = policy.clone().requires_grad_()
    logprobs, mask = logprobs_of(logits)
    drawn, _ = logprobs_of(behavior)
    weights, _ = importance_weights(logprobs.detach(), drawn, bounds)
    losses = divergence_losses(estimator, logprobs, logprobs_of(reference)[0], mask, weights)
    (gradient,) = torch.autograd.grad((drawn.sum(1).exp() * losses.sum(1)).sum(), logits)
    return gradient


def divergence_gradient(policy: Tensor, reference: Tensor) -> Tensor:
    """Computes ∇ KL(π, ρ) of whole answers."""
    logits = policy.clone().requires_grad_()
    own, other = logprobs_of(logits)[0].sum(1), logprobs_of(reference)[0].sum(1)
    (gradient,) = torch.autograd.grad((own.exp() * (own - other)).sum(), logits)
    return gradient


def test_k1_follows_the_divergence_of_answers_from_the_reference():
    policy, reference = table(1), table(2)
    found = expected_gradient("k1", policy, reference, policy, UNBOUNDED)
    assert torch.allclose(found, divergence_gradient(policy, reference), atol=1e-12)


def test_k1_has_the_value_of_the_divergence():
    policy, reference = table(1), table(2)
    (own, mask), (other, _) = logprobs_of(policy), logprobs_of(reference)
    losses = divergence_losses("k1", own, other, mask, torch.ones_like(own))
    exact = (own.sum(1).exp() * (own - other).sum(1)).sum()
    assert float((own.sum(1).exp() * losses.sum(1)).sum()) == pytest.approx(float(exact), abs=1e-12)


def test_k2_follows_the_divergence_of_each_token_with_those_before_it_given():
    policy, reference = table(1), table(2)
    logits = policy.clone().requires_grad_()
    own, other = logits.log_softmax(-1), reference.log_softmax(-1)
    tokens = (own.exp() * (own - other)).sum(1)
    reached = torch.cat([torch.ones(1), own[0].exp().detach() * torch.tensor([0.0, 1.0, 1.0])])
    (exact,) = torch.autograd.grad((reached * tokens).sum(), logits)
    assert torch.allclose(expected_gradient("k2", policy, reference, policy, UNBOUNDED), exact, atol=1e-12)
    # The gradient over whole answers differs: there a token also decides which ones follow.
    assert not torch.allclose(exact, divergence_gradient(policy, reference), atol=1e-3)


def test_k3_follows_the_reverse_divergence_of_each_token():
    policy, reference = table(1), table(2)
    logits = policy.clone().requires_grad_()
    own, other = logits.log_softmax(-1), reference.log_softmax(-1)
    tokens = (other.exp() * (other - own)).sum(1)
    reached = torch.cat([torch.ones(1), own[0].exp().detach() * torch.tensor([0.0, 1.0, 1.0])])
    (exact,) = torch.autograd.grad((reached * tokens).sum(), logits)
    assert torch.allclose(expected_gradient("k3", policy, reference, policy, UNBOUNDED), exact, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_importance_weights_correct_the_gradient_at_a_token_that_other_weights_drew(estimator: str):
    # All three give the second tokens the same probabilities: one token's weight is that of the whole answer.
    same = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    logits = [torch.cat([table(seed)[:1], same]) for seed in (1, 2, 3)]
    found = expected_gradient(estimator, *logits, UNBOUNDED)[0]
    exact = divergence_gradient(logits[0], logits[1])[0]
    uncorrected = expected_gradient(estimator, *logits, Importance(max=1.0))[0]
    assert torch.allclose(found, exact, atol=1e-12)
    assert not torch.allclose(uncorrected, exact, atol=1e-3)


@pytest.mark.parametrize("length", [1, 1024, 16_384])
def test_importance_weights_do_not_fade_with_length(length: int):
    # Two policies 0.034 nats a token apart. A token's weight has the mean 1; the product over an answer would vanish.
    chance = torch.Generator().manual_seed(length)
    gap, answers = 0.034, max(1, 65_536 // length)
    scale = math.sqrt(2 * gap)
    lags = scale * torch.randn(answers, length, generator=chance, dtype=torch.float64) - gap
    weights, outside = importance_weights(lags, torch.zeros_like(lags), Importance())
    assert float(weights.mean()) == pytest.approx(1, abs=0.01)
    assert float(outside.double().mean()) < 0.01
    if length == 16_384:
        assert float(lags.sum(1).exp().clamp(max=2).mean()) < 1e-3


def test_masks_leave_out_what_is_not_between_their_bounds():
    ratios = torch.tensor([0.4, 0.5, 1.0, 5.0, 5.1], dtype=torch.float64)
    icepop = Importance(method="mask", min=0.5, max=5.0)
    weights, outside = importance_weights(ratios.log(), torch.zeros(5, dtype=torch.float64), icepop)
    assert weights.tolist() == pytest.approx([0, 0.5, 1, 5, 0])
    assert outside.tolist() == [True, False, False, False, True]
    weights, _ = importance_weights(ratios.log(), torch.zeros(5, dtype=torch.float64), Importance())
    assert weights.tolist() == pytest.approx([0.4, 0.5, 1, 2, 2])


def test_every_estimator_of_the_recipe_is_checked():
    assert set(DIVERGENCES) == {"k1", "k2", "k3"}
