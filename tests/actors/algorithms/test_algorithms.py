"""Every policy-gradient algorithm against a reference in float64, written token by token from the papers' equations."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from actors.algorithms.base import Algorithm
from actors.algorithms.divergence import kl_k1, kl_k2, kl_k3
from actors.algorithms.losses import Clip, RolloutBatch, Targets, clip_for
from actors.algorithms.registry import ALGORITHMS
from actors.algorithms.shaping import adapted_coefficient, at_last_token, overlong_penalty
from cluster.recipe.rlhf.presets import PRESETS
from cluster.recipe.rlhf.regularization import Importance
from cluster.recipe.rlhf.section import Rlhf
from tests.helpers import ROOT, rlhf

# A group of three, a group whose rewards are equal, and a sample alone; answers of 1 to 5 tokens.
STARTS = [1, 2, 1, 3, 1, 2]
LENGTHS = [3, 1, 5, 2, 4, 2]
GROUPS = [4, 4, 4, 9, 9, 7]
REWARDS = [1.0, -0.5, 0.25, 0.75, 0.75, 2.0]
WIDTH, MAX_TOKENS = 7, 8
COEFFICIENT = 0.3
GROUPED = ["grpo", "dr_grpo", "rloo", "dapo", "gspo"]


@dataclass
class Hand:
    """The same batch as tensors and, token by token, as lists."""

    batch: RolloutBatch
    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor

    def row(self, name: str, i: int) -> list[float]:
        whole = getattr(self, name) if hasattr(self, name) else getattr(self.batch, name)
        return whole[i, STARTS[i] : STARTS[i] + LENGTHS[i]].tolist()


@pytest.fixture
def hand() -> Hand:
    chance = np.random.default_rng(3)
    completion_mask = np.zeros((6, WIDTH), dtype=bool)
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        completion_mask[row, start : start + length] = True

    def on_answer(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values * completion_mask)

    old_logprobs = chance.normal(-2, 0.6, completion_mask.shape)
    # Ratios on both sides of every clip range, and importance weights on both sides of their limit.
    logprobs = old_logprobs + chance.normal(0, 0.35, completion_mask.shape)
    logprobs[0, 2] = old_logprobs[0, 2] + math.log(1.24)  # between the upper bounds of GRPO and DAPO
    behavior_logprobs = old_logprobs - chance.normal(0, 0.6, completion_mask.shape)
    others = [on_answer(chance.normal(mean, 0.5, completion_mask.shape)) for mean in (-2, 0)]
    batch = RolloutBatch(
        torch.zeros(6, WIDTH, dtype=torch.long),
        torch.from_numpy(completion_mask),
        on_answer(behavior_logprobs),
        torch.tensor(REWARDS, dtype=torch.float64),
        torch.tensor(GROUPS),
        torch.from_numpy(completion_mask),
    )
    return Hand(batch, on_answer(logprobs).requires_grad_(), on_answer(old_logprobs), *others)


def loss_and_gradient(
    hand: Hand, algorithm: Algorithm, targets: Targets, clip: Clip
) -> tuple[float, torch.Tensor, int]:
    losses, clipped = algorithm.token_losses(hand.batch, targets, hand.logprobs, clip)
    divisors, total = algorithm.average(hand.batch.completion_mask, MAX_TOKENS)
    loss = (losses / divisors)[hand.batch.completion_mask].sum() / total
    (gradient,) = torch.autograd.grad(loss, hand.logprobs)
    return loss.item(), gradient, int(clipped.expand_as(losses)[hand.batch.completion_mask].sum())


def targets_of(hand: Hand, name: str) -> Targets:
    algorithm = ALGORITHMS[name]
    rewards = at_last_token(hand.batch.rewards, hand.batch.completion_mask)
    if PRESETS[name].kl_charged_in == "reward":
        rewards = rewards - COEFFICIENT * kl_k1(hand.old_logprobs, hand.ref_logprobs)
    values = hand.values if algorithm.value_losses else None
    advantages, returns = algorithm.targets(hand.batch, rewards, values)
    return Targets(advantages, hand.old_logprobs, hand.ref_logprobs, values, returns)


def others(i: int) -> list[int]:
    return [j for j in range(6) if GROUPS[j] == GROUPS[i]]


def divergence(hand: Hand, i: int) -> list[float]:
    return [p - r for p, r in zip(hand.row("old_logprobs", i), hand.row("ref_logprobs", i), strict=True)]


def standardized(rows: list[list[float]]) -> list[list[float]]:
    drawn = [value for row in rows for value in row]
    return [[(value - np.mean(drawn)) / np.std(drawn) for value in row] for row in rows]


def expected_advantages(name: str, hand: Hand) -> list[list[float]]:
    """Returns the advantage of every drawn token, by the equations of each paper."""
    if name in ("grpo", "dapo", "gspo"):  # Shao et al. 2024, section 4.1.2: (r - mean) / std
        groups = [[REWARDS[j] for j in others(i)] for i in range(6)]
        scores = [(REWARDS[i] - np.mean(group)) / (np.std(group) + 1e-4) for i, group in enumerate(groups)]
    elif name == "dr_grpo":  # Liu et al. 2025, section 3.2: r - mean
        scores = [REWARDS[i] - np.mean([REWARDS[j] for j in others(i)]) for i in range(6)]
    elif name == "rloo":  # Ahmadian et al. 2024, section 3.2: R(y, x) = r - β log π/π_ref, minus the others' mean
        whole = [REWARDS[i] - COEFFICIENT * sum(divergence(hand, i)) for i in range(6)]
        scores = [whole[i] - np.mean([whole[j] for j in others(i) if j != i] or [whole[i]]) for i in range(6)]
    elif name == "reinforce++":  # Hu et al. 2025: A_t = r - β Σ_{s ≥ t} KL(s), normalized over the batch
        left = [[REWARDS[i] - COEFFICIENT * sum(divergence(hand, i)[t:]) for t in range(LENGTHS[i])] for i in range(6)]
        return standardized(left)
    elif name == "reinforce++-baseline":  # Hu et al. 2025: r - mean of the prompt's, normalized over the batch
        means = [np.mean([REWARDS[j] for j in others(i)]) for i in range(6)]
        return standardized([[REWARDS[i] - means[i]] * LENGTHS[i] for i in range(6)])
    else:  # Schulman et al. 2016, eq. 16, with γ = 1 and λ = 0.95
        rows = []
        for i in range(6):
            rewards = [-COEFFICIENT * k for k in divergence(hand, i)]
            rewards[-1] += REWARDS[i]
            values = [*hand.row("values", i), 0.0]
            deltas = [rewards[t] + values[t + 1] - values[t] for t in range(LENGTHS[i])]
            rows.append([sum(0.95 ** (s - t) * deltas[s] for s in range(t, LENGTHS[i])) for t in range(LENGTHS[i])])
        return standardized(rows)
    return [[score] * LENGTHS[i] for i, score in enumerate(scores)]


def expected_loss(name: str, hand: Hand, clip: Clip) -> tuple[float, torch.Tensor, int]:
    """Returns the loss, its derivative by every log-probability, and how many tokens were clipped."""
    loss, gradient, clipped = 0.0, torch.zeros(6, WIDTH, dtype=torch.float64), 0
    whole = name in ("rloo", "gspo")
    for i, advantages in enumerate(expected_advantages(name, hand)):
        # How much a token weighs: 1/Σ|o| (DAPO, eq. 8), 1/(N·max) (Dr. GRPO), or 1/(N·|o|) of the answer's own loss.
        share = {"dr_grpo": 1 / (6 * MAX_TOKENS)}.get(name, 1 / (6 * LENGTHS[i]) if whole else 1 / sum(LENGTHS))
        rows = [hand.row(key, i) for key in ("logprobs", "old_logprobs", "behavior_logprobs")]
        steps = [new - old for new, old, _ in zip(*rows, strict=True)]
        lags = [old - drawn for _, old, drawn in zip(*rows, strict=True)]
        for t, advantage in enumerate(advantages):
            parts = LENGTHS[i] if name == "gspo" else 1
            step = sum(steps) / parts if whole else steps[t]
            ratio, weight = math.exp(step), importance(math.exp(lags[t]), clip.importance)
            bound = min(max(ratio, 1 - clip.low), 1 + clip.high)
            value = min(ratio * advantage, bound * advantage)
            # Ye et al. 2020, eq. 5: max(min(…), c A) where A < 0.
            value = max(value, clip.dual * advantage) if clip.dual and advantage < 0 else value
            loss -= share * weight * value
            if value != ratio * advantage:
                clipped += 1
            else:
                # An answer's ratio has a gradient at each token, of which this is the part of token t; its losses are
                # the same at all of them, and averaged.
                places = LENGTHS[i] / parts if whole else 1
                gradient[i, STARTS[i] + t] -= share * places * weight * ratio * advantage
    return loss, gradient, clipped


def importance(ratio: float, bounds: Importance) -> float:
    if bounds.method == "truncate":
        return min(ratio, bounds.max)
    return ratio if bounds.min <= ratio <= bounds.max else 0.0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_advantages_equal_the_papers(name: str, hand: Hand):
    advantages = targets_of(hand, name).advantages
    for i, expected in enumerate(expected_advantages(name, hand)):
        found = advantages[i].tolist()
        span = slice(STARTS[i], STARTS[i] + LENGTHS[i])
        assert found[span] == pytest.approx(expected, abs=1e-12)
        assert not any(found[: span.start] + found[span.stop :])


BOUNDS = [Importance(), Importance(method="mask", max=2.0), Importance(method="mask", min=0.5, max=1.5)]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_losses_and_gradients_equal_the_papers(name: str, bounds: Importance, hand: Hand):
    algorithm = ALGORITHMS[name]
    clip = clip_for(rlhf(algorithm=name, importance=bounds))
    loss, gradient, clipped = loss_and_gradient(hand, algorithm, targets_of(hand, name), clip)
    expected, derivative, many = expected_loss(name, hand, clip)
    assert loss == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(gradient, derivative, atol=1e-12)
    assert clipped == many > 0
    assert clip.importance is bounds
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", GROUPED)
def test_samples_without_comparison_have_no_advantage(name: str, hand: Hand):
    algorithm = ALGORITHMS[name]
    rewards = at_last_token(hand.batch.rewards, hand.batch.completion_mask)
    advantages, _ = algorithm.targets(hand.batch, rewards, None)
    assert advantages[3:].eq(0).all()
    assert advantages[:3].abs().sum() > 0


def test_clip_ranges_are_the_papers_unless_the_recipe_sets_them():
    found = {name: clip_for(rlhf(algorithm=name)) for name in ALGORITHMS}
    assert found.pop("dapo") == Clip(0.2, 0.28)
    assert found.pop("gspo") == Clip(3e-4, 4e-4)
    assert found.pop("ppo") == Clip(0.2, 0.2, dual=3.0)
    assert all(clip == Clip(0.2, 0.2) for clip in found.values())
    assert clip_for(rlhf(algorithm="dapo", clip_range=0.1)) == Clip(0.1, 0.1)
    assert clip_for(rlhf(algorithm="dapo", clip_range_high=0.4)) == Clip(0.2, 0.4)
    assert clip_for(rlhf(algorithm="grpo", dual_clip=2.0)) == Clip(0.2, 0.2, dual=2.0)


def test_the_recipe_names_every_algorithm():
    names = Rlhf.model_json_schema()["properties"]["algorithm"]["enum"]
    assert set(names) == {*ALGORITHMS, "distill"} == set(PRESETS)


@pytest.mark.parametrize(
    ("estimator", "derivative"),
    [(kl_k1, lambda _: 1.0), (kl_k2, lambda gap: gap), (kl_k3, lambda gap: 1 - math.exp(-gap))],
)
@pytest.mark.parametrize("gap", [-0.7, 0.0, 0.4])
def test_divergence_estimators_have_the_gradients_of_schulman(estimator, derivative, gap: float):
    ref_logprobs = torch.tensor(-1.5, dtype=torch.float64)
    logprobs = (ref_logprobs + gap).requires_grad_()
    (gradient,) = torch.autograd.grad(estimator(logprobs, ref_logprobs), logprobs)
    assert gradient.item() == pytest.approx(derivative(gap), abs=1e-12)


def test_overlong_answers_are_punished_as_in_dapo():
    # Yu et al. 2025, eq. 13, with L_max 20 and L_cache 5.
    lengths = torch.tensor([1, 15, 16, 18, 20])
    assert overlong_penalty(lengths, 20, 0.25).tolist() == pytest.approx([0, 0, -0.2, -0.6, -1])
    assert overlong_penalty(lengths, 20, 0.0).tolist() == [0] * 5


def test_the_coefficient_follows_the_divergence():
    # Ziegler et al. 2019, section 2.2: e = clip(KL/target - 1, -0.2, 0.2), β ← β (1 + 0.1 e).
    assert adapted_coefficient(0.5, 6.0, 6.0) == 0.5
    assert adapted_coefficient(0.5, 6.6, 6.0) == pytest.approx(0.5 * 1.01)
    assert adapted_coefficient(0.5, 60.0, 6.0) == pytest.approx(0.5 * 1.02)
    assert adapted_coefficient(0.5, -1.0, 6.0) == pytest.approx(0.5 * 0.98)


@pytest.mark.parametrize(
    ("name", "loss", "norm"),
    [
        ("grpo", -0.148947940478, 0.086272446965),
        ("dapo", -0.151829222605, 0.124181126265),
        ("dr_grpo", -0.032309388213, 0.018713988070),
        ("gspo", 0.011830005147, 0.110966482108),
        ("rloo", -0.023643610619, 0.560830613727),
    ],
)
def test_losses_and_gradients_equal_those_of_trl(name: str, loss: float, norm: float, hand: Hand):
    # Results of `_compute_loss` of TRL 1.16's trainers for this batch, on-policy, without a divergence in the loss:
    # loss_type bnpo, dapo, dr_grpo, grpo with importance_sampling_level sequence, and RLOOTrainer.
    hand.batch.behavior_logprobs.copy_(hand.old_logprobs)
    algorithm = ALGORITHMS[name]
    clip = clip_for(rlhf(algorithm=name))
    found, gradient, _ = loss_and_gradient(hand, algorithm, targets_of(hand, name), clip)
    assert found == pytest.approx(loss, abs=1e-11)
    assert gradient.norm().item() == pytest.approx(norm, abs=1e-11)


def test_the_docs_show_every_preset():
    page = (ROOT / "infra" / "docs" / "algorithms.md").read_text()
    for name, preset in PRESETS.items():
        charged = f", {preset.kl_charged_in}" if preset.kl_coefficient else ""
        clips = f"{preset.clip_range:g}, {preset.clip_range_high:g}".replace("0.0003", "3e-4")
        clips = clips.replace("0.0004", "4e-4")
        row = f"| `{name}` | {preset.kl_coefficient:g}{charged} | {preset.minibatches} | {clips} |"
        assert row in page, row
