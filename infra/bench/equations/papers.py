"""The equations of each policy-gradient algorithm's paper in float64, written again, one answer at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.recipe.rlhf.presets import PRESETS

# The weight of the divergence, the most tokens of an answer, and the sampling temperature of all cases.
BETA, MAX_TOKENS, TEMPERATURE = 0.3, 8, 0.9


@dataclass
class Row:
    """One answer: its ids, its start, which of its tokens were drawn, and how."""

    ids: list[int]
    start: int
    drawn: list[bool]
    behavior: list[float]
    reward: float
    group: int
    kept: bool

    @property
    def places(self) -> list[int]:
        """The places of the drawn tokens in `ids`."""
        return [self.start + i for i, own in enumerate(self.drawn) if own]

    @property
    def drawn_behavior(self) -> Tensor:
        """The log-probabilities of the drawn tokens under the weights that drew them."""
        return torch.tensor([value for value, own in zip(self.behavior, self.drawn, strict=True) if own]).double()


def logprobs(model: Any, row: Row) -> Tensor:
    """Computes the log-probabilities of the drawn tokens."""
    table = (model(torch.tensor([row.ids])).logits[0].double() / TEMPERATURE).log_softmax(-1)
    before = torch.tensor([place - 1 for place in row.places])
    return table[before].gather(1, torch.tensor([[row.ids[place]] for place in row.places])).squeeze(1)


def values(critic: Any, row: Row) -> Tensor:
    """Computes the critic's values of the states in which the drawn tokens were drawn."""
    states = critic.model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
    return critic.score(states).squeeze(-1).double()[[place - 1 for place in row.places]]


def advantages(name: str, rows: list[Row], old: list[Tensor], gaps: list[Tensor], critic: list[Tensor]) -> list[Tensor]:
    """Computes the advantage of every drawn token.

    Args:
        name: the algorithm.
        rows: N answers.
        old: the log-probabilities of each answer under the policy.
        gaps: the log-probabilities of each answer under the policy less those under the reference.
        critic: the critic's values of each answer; empty without a critic.
    """
    beta = BETA if PRESETS[name].kl_charged_in == "reward" else 0.0
    rewards = [-beta * gap for gap in gaps]
    for row, own in zip(rows, rewards, strict=True):
        own[-1] += row.reward
    whole = [float(own.sum()) for own in rewards]
    groups = [[whole[j] for j, other in enumerate(rows) if other.group == row.group] for row in rows]

    def normalized(found: list[Tensor]) -> list[Tensor]:
        flat = torch.cat(found)
        return [(one - flat.mean()) / flat.std(unbiased=False) for one in found]

    if name == "reinforce++":
        return normalized([own.flip(0).cumsum(0).flip(0) for own in rewards])
    if name == "ppo":
        found = []
        for own, value in zip(rewards, critic, strict=True):
            following, later, result = 0.0, 0.0, []
            for t in reversed(range(len(own))):
                following = float(own[t]) + later - float(value[t]) + 0.95 * following
                later = float(value[t])
                result.append(following)
            found.append(torch.tensor(result[::-1], dtype=torch.float64))
        return normalized(found)
    scores = [value - float(np.mean(group)) for value, group in zip(whole, groups, strict=True)]
    if name in ("grpo", "dapo", "gspo"):
        scores = [score / (float(np.std(group)) + 1e-4) for score, group in zip(scores, groups, strict=True)]
    if name == "rloo":
        scores = [score * len(group) / (len(group) - 1) for score, group in zip(scores, groups, strict=True)]
    found = [torch.full_like(one, score) for one, score in zip(old, scores, strict=True)]
    return normalized(found) if name == "reinforce++-baseline" else found


def generalized_advantages(rows: list[Row], gaps: list[Tensor], critic: list[Tensor]) -> list[Tensor]:
    """Computes GAE (Schulman et al. 2016, eq. 16) with λ = 0.95 as the sum over what follows."""
    found = []
    for row, gap, value in zip(rows, gaps, critic, strict=True):
        rewards = -BETA * gap
        rewards[-1] += row.reward
        later = torch.cat([value[1:], torch.zeros(1, dtype=torch.float64)])
        deltas = rewards + later - value
        count = len(deltas)
        sums = [(0.95 ** torch.arange(count - t, dtype=torch.float64) * deltas[t:]).sum() for t in range(count)]
        found.append(torch.stack(sums))
    return found


@dataclass(frozen=True)
class PaperStep:
    """The inputs of the loss of one optimizer step.

    Attributes:
        name: the algorithm.
        policy: the model before the step, in float64.
        rows: the answers that are learned from.
        old: the log-probabilities of each answer before the first optimizer step on the batch.
        reference: the log-probabilities of each answer under the reference.
        advantages: the advantages of each answer.
    """

    name: str
    policy: Any
    rows: list[Row]
    old: list[Tensor]
    reference: list[Tensor]
    advantages: list[Tensor]

    def importance_weights(self) -> list[Tensor]:
        """Computes the truncated importance weights of the tokens of each row."""
        return [(old - row.drawn_behavior).exp().clamp(max=2.0) for row, old in zip(self.rows, self.old, strict=True)]

    def loss(self, beta: float = BETA) -> Tensor:
        """Computes the loss, which has gradients in the policy's weights.

        Args:
            beta: the weight of a divergence that is charged in the loss.
        """
        preset, total = PRESETS[self.name], torch.zeros((), dtype=torch.float64)
        budget = sum(len(row.places) for row in self.rows)
        if self.name == "dr_grpo":
            budget = len(self.rows) * MAX_TOKENS
        tables = (self.rows, self.old, self.reference, self.advantages, self.importance_weights())
        for row, before, reference, own, weight in zip(*tables, strict=True):
            now = logprobs(self.policy, row)
            steps = now - before
            if self.name in ("rloo", "gspo"):
                # One ratio for the answer; its gradient at each token has the importance weight of that token.
                pooled = steps.mean() if self.name == "gspo" else steps.sum()
                size = 1 if self.name == "gspo" else len(steps)
                ratio = pooled.detach().exp() * (size * (now - now.detach())).exp()
            else:
                ratio = steps.exp()
            value = torch.minimum(ratio * own, ratio.clamp(1 - preset.clip_range, 1 + preset.clip_range_high) * own)
            if preset.dual_clip:
                value = torch.where(own < 0, torch.maximum(value, preset.dual_clip * own), value)
            answer = -weight * value
            by_answer = self.name in ("rloo", "gspo")
            total = total + (answer.mean() / len(self.rows) if by_answer else answer.sum() / budget)
            if preset.kl_charged_in == "loss" and beta:
                corrected = (now.detach() - row.drawn_behavior).exp().clamp(max=2.0)
                gap = now - reference
                if preset.kl_estimator == "k2":
                    divergence = 0.5 * gap.square()
                else:
                    following = torch.stack([gap.detach()[t:].sum() for t in range(len(gap))])
                    divergence = gap.detach() + following * (now - now.detach())
                total = total + beta * (corrected * divergence).sum() / budget
        return total


def value_loss(rows: list[Row], new: list[Tensor], old: list[Tensor], returns: list[Tensor]) -> Tensor:
    """Computes the critic's loss with clipped steps: of each row its values now and before, and their targets."""
    learned = sum(len(row.places) for row in rows)
    total = torch.zeros((), dtype=torch.float64)
    for now, before, wanted in zip(new, old, returns, strict=True):
        near = before + (now - before).clamp(-0.2, 0.2)
        total = total + 0.5 * torch.maximum((now - wanted) ** 2, (near - wanted) ** 2).sum() / learned
    return total


def gradients(loss: Tensor, model: Any, longest: float = float("inf")) -> dict[str, Tensor]:
    """Computes the gradients of a loss by the names of the parameters, scaled down to a norm of at most `longest`."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    whole = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}
    norm = torch.stack([one.square().sum() for one in whole.values()]).sum().sqrt()
    return {name: one * min(1.0, longest / (float(norm) + 1e-6)) for name, one in whole.items()}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Returns the largest difference of two gradients, relative to the largest element if that is above 1."""
    largest = max(float(one.abs().max()) for one in expected.values())
    return max(float((found[name] - one).abs().max()) for name, one in expected.items()) / max(1.0, largest)
