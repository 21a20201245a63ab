"""What the policy-gradient algorithms share: the batch, log-probabilities, divergence and the clipped surrogates."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from actors.model.causal_lm import output_logits
from actors.model.prefix_sharing import answer_states

# Truncation of the importance weight of tokens drawn by older weights (Yao et al. 2025, "TIS").
IMPORTANCE_LIMIT = 2.0
EPSILON = 1e-8


@dataclass(frozen=True)
class RolloutBatch:
    """Samples of several prompts, padded at the right.

    Attributes:
        input_ids: [N, T], prompt and answer.
        answer: bool [N, T], which tokens the policy drew.
        behavior: [N, T], log-probability of every drawn token under the weights that drew it; 0 elsewhere.
        rewards: [N].
        groups: [N], which prompt a row answers; rows of one group begin with it.
    """

    input_ids: Tensor
    answer: Tensor
    behavior: Tensor
    rewards: Tensor
    groups: Tensor

    @property
    def width(self) -> int:
        """T."""
        return self.answer.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and answer, [N]; T for a row without an answer."""
        return self.answer.shape[1] - self.answer.flip(1).int().argmax(1)

    def rows(self, index: Tensor) -> "RolloutBatch":
        """Some of the rows, as wide as the longest of them."""
        return RolloutBatch(**_cut(self, index, int(self.lengths[index].max())))


@dataclass(frozen=True)
class Targets:
    """What the samples taught before any update; all [N, T].

    Attributes:
        advantages: how much better a token was than expected.
        proximal: log-probabilities under the weights at the start of the step; None if those are the weights of the
            only update, whose own log-probabilities are meant then.
        reference: log-probabilities under the model that training must stay near.
        values: the critic's estimates (PPO), else None.
        returns: what they should have been (PPO), else None.
    """

    advantages: Tensor
    proximal: Tensor | None
    reference: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None

    def rows(self, index: Tensor, width: int) -> "Targets":
        """Some of the rows, of so many tokens."""
        return Targets(**_cut(self, index, width))


def _cut(table: RolloutBatch | Targets, index: Tensor, width: int) -> dict[str, Any]:
    return {
        name: None if value is None else value[index, :width] if value.dim() == 2 else value[index]
        for name, value in vars(table).items()
    }


def answer_logprobs(model: Any, batch: RolloutBatch, temperature: float) -> Tensor:
    """Log-probabilities of drawn tokens. [N, T] float32, 0 outside the answers."""
    logits, drawn = _logits(model, batch, temperature)
    return _place(-cross_entropy(logits, drawn, reduction="none"), batch.answer)


def answer_logprobs_and_entropy(
    model: Any, batch: RolloutBatch, temperature: float, entropy_learns: bool
) -> tuple[Tensor, Tensor]:
    """As `answer_logprobs`, and the entropy of the distribution that every token was drawn from.

    Args:
        entropy_learns: whether the entropy has a gradient.
    """
    logits, drawn = _logits(model, batch, temperature)
    distribution = logits.log_softmax(-1)
    chosen = distribution.gather(1, drawn.unsqueeze(1)).squeeze(1)
    with torch.set_grad_enabled(entropy_learns and torch.is_grad_enabled()):
        entropy = -(distribution.exp() * distribution).sum(-1)
    return _place(chosen, batch.answer), _place(entropy, batch.answer)


def _logits(model: Any, batch: RolloutBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Of drawn tokens alone: [M, V] in float32, and their ids, [M]."""
    states = answer_states(model, batch.input_ids, batch.answer, batch.groups)
    logits = output_logits(model, states).float()
    # Another pass over all logits, and one back: 0.04 of 1.1 s of a step of the demo.
    scaled = logits if temperature == 1 else logits / temperature
    return scaled, batch.input_ids[:, 1:][batch.answer[:, 1:]]


def _place(values: Tensor, answer: Tensor) -> Tensor:
    whole = torch.zeros(answer.shape, dtype=values.dtype, device=values.device)
    drawn = answer.clone()
    drawn[:, 0] = False
    return whole.masked_scatter(drawn, values)


def whitened(values: Tensor, answer: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the drawn tokens, and 0 elsewhere. [N, T] -> [N, T]."""
    drawn = values[answer]
    return (values - drawn.mean()) / (drawn.std(unbiased=False) + EPSILON) * answer


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log π/π_ref of drawn tokens: unbiased for KL(π, π_ref), and may be negative (Schulman 2020)."""
    return logprobs - reference


def kl_k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """½ (log π/π_ref)²: biased for KL(π, π_ref), but as a loss its gradient is the KL's (Schulman 2020)."""
    return 0.5 * (logprobs - reference).square()


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(π_ref/π - 1) - log π_ref/π: unbiased, never negative, of low variance (Schulman 2020)."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1 - log_ratio


DIVERGENCES = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@dataclass(frozen=True)
class Clip:
    """How far the ratio of new to old probabilities counts: within [1 - low, 1 + high]."""

    low: float
    high: float


def token_surrogate(batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate with a ratio for every token (Schulman et al. 2017, eq. 7), as a loss.

    Returns:
        the loss of every token, and whether it was clipped; [N, T] each.
    """
    proximal = _proximal(targets, logprobs)
    return _surrogate(logprobs - proximal, proximal - batch.behavior, targets.advantages, clip)


def sequence_surrogate(
    batch: RolloutBatch, targets: Targets, logprobs: Tensor, clip: Clip, *, mean: bool
) -> tuple[Tensor, Tensor]:
    """The same with one ratio for an answer: the product of its tokens' ratios, or their geometric mean.

    Returns:
        the loss of the whole answer at each of its tokens, to be averaged over them, and whether it was clipped;
        [N, T] each.
    """

    def pooled(values: Tensor) -> Tensor:
        total = (values * batch.answer).sum(1, keepdim=True)
        return total / batch.answer.sum(1, keepdim=True).clamp(min=1) if mean else total

    proximal = _proximal(targets, logprobs)
    step, lag = pooled(logprobs - proximal), pooled(proximal - batch.behavior)
    return _surrogate(step, lag, targets.advantages, clip)


def _proximal(targets: Targets, logprobs: Tensor) -> Tensor:
    return logprobs.detach() if targets.proximal is None else targets.proximal


def _surrogate(step: Tensor, lag: Tensor, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Times the truncated importance weight of proximal over behavior, which is 1 when the samples are on-policy."""
    ratio = step.exp()
    weight = lag.exp().clamp(max=IMPORTANCE_LIMIT)
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high) * advantages
    return -weight * torch.minimum(free, clipped), clipped < free
