"""Whole steps of the learner against the papers' equations, written again in float64, one answer at a time: the loss
and the gradient of every optimizer step, on answers that were drawn by older weights, with tokens that the policy did
not draw and answers that were cut, in two minibatches and micro-batches of 1 and of 64."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.algorithms.registry import ALGORITHMS
from actors.learner.learner import Learner
from actors.types import Prompt, RolloutId, Sample
from cluster.recipe.rlhf.presets import PRESETS
from tests.actors.learner.test_learner import Folders, model_folders
from tests.helpers import rlhf

BETA, MAX_TOKENS, TEMPERATURE = 0.3, 8, 0.9
PROMPTS = [Prompt("a", [2, 10, 11, 4, 3]), Prompt("b", [2, 12, 4, 3]), Prompt("c", [2, 9, 3])]
ANSWERS = [[[20, 21, 4], [22, 4], [23, 24, 25, 26, 27]], [[23, 4], [24, 25, 26, 4]], [[30, 31], [27, 28, 4]]]
REWARDS = [[1.0, -1.0, 0.25], [0.5, -0.5], [0.75, 2.0]]
# Between two turns of the second conversation stand two tokens that the policy did not draw.
HOLE, CUT = (1, 1), (0, 2)


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
        return [self.start + i for i, own in enumerate(self.drawn) if own]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return model_folders(tmp_path_factory.mktemp("conformance"))


def logprobs(model: Any, row: Row) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the drawn tokens, and the entropies that they were drawn from."""
    table = (model(torch.tensor([row.ids])).logits[0].double() / TEMPERATURE).log_softmax(-1)
    before = torch.tensor([place - 1 for place in row.places])
    chosen = table[before].gather(1, torch.tensor([[row.ids[place]] for place in row.places])).squeeze(1)
    return chosen, -(table[before].exp() * table[before]).sum(1)


def values(critic: Any, row: Row) -> Tensor:
    states = critic.model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
    return critic.score(states).squeeze(-1).double()[[place - 1 for place in row.places]]


def samples(rows: list[Row]) -> list[list[Sample]]:
    given = iter(rows)
    groups = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        own = [next(given) for _ in answers]
        groups.append(
            [
                Sample(
                    RolloutId(0, prompt.id, index),
                    answer,
                    row.behavior,
                    [0] * len(answer),
                    "stop" if row.kept else "length",
                    "",
                    row.drawn,
                )
                for index, (row, answer) in enumerate(zip(own, answers, strict=True))
            ]
        )
    return groups


def make_rows(learner: Learner, stale: bool) -> list[Row]:
    chance = np.random.default_rng(5)
    rows = []
    for p, (prompt, answers) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for a, answer in enumerate(answers):
            drawn = [not ((p, a) == HOLE and i in (1, 2)) for i in range(len(answer))]
            row = Row(prompt.token_ids + answer, len(prompt.token_ids), drawn, [], REWARDS[p][a], p, (p, a) != CUT)
            with torch.no_grad():
                now = iter(logprobs(learner.policy, row)[0].tolist())
            # On both sides of the bounds of importance weights, and exact in float32.
            lag = chance.normal(0, 0.5, len(answer)) if stale else np.zeros(len(answer))
            row.behavior = [float(np.float32(next(now) - lag[i])) if own else 0.0 for i, own in enumerate(drawn)]
            rows.append(row)
    return rows


def advantages(name: str, rows: list[Row], old: list[Tensor], gaps: list[Tensor], critic: list[Tensor]) -> list[Tensor]:
    """The advantage of every drawn token, by the equations of each paper."""
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
    scores = [value - np.mean(group) for value, group in zip(whole, groups, strict=True)]
    if name in ("grpo", "dapo", "gspo"):
        scores = [score / (np.std(group) + 1e-4) for score, group in zip(scores, groups, strict=True)]
    if name == "rloo":
        scores = [score * len(group) / (len(group) - 1) for score, group in zip(scores, groups, strict=True)]
    found = [torch.full_like(one, score) for one, score in zip(old, scores, strict=True)]
    return normalized(found) if name == "reinforce++-baseline" else found


def expected_loss(
    name: str, chosen: list[Row], new: list[Tensor], old: list[Tensor], ref: list[Tensor], advantage: list[Tensor]
) -> Tensor:
    """The loss of the rows of one optimizer step; `new` has gradients."""
    preset, total = PRESETS[name], torch.zeros((), dtype=torch.float64)
    learned = sum(len(row.places) for row in chosen)
    budget = {"dr_grpo": len(chosen) * MAX_TOKENS}.get(name, learned)
    for row, now, before, reference, own in zip(chosen, new, old, ref, advantage, strict=True):
        drawn = torch.tensor([value for value, mine in zip(row.behavior, row.drawn, strict=True) if mine]).double()
        weight = (before - drawn).exp().clamp(max=2.0)
        steps = now - before
        if name in ("rloo", "gspo"):
            # One ratio for the answer; its gradient at each token has the importance weight of that token.
            pooled = steps.mean() if name == "gspo" else steps.sum()
            size = 1 if name == "gspo" else len(steps)
            ratio = pooled.detach().exp() * (size * (now - now.detach())).exp()
        else:
            ratio = steps.exp()
        value = torch.minimum(ratio * own, ratio.clamp(1 - preset.clip_range, 1 + preset.clip_range_high) * own)
        if preset.dual_clip:
            value = torch.where(own < 0, torch.maximum(value, preset.dual_clip * own), value)
        answer = -weight * value
        total = total + (answer.mean() / len(chosen) if name in ("rloo", "gspo") else answer.sum() / budget)
        if preset.kl_charged_in == "loss":
            corrected = (now.detach() - drawn).exp().clamp(max=2.0)
            gap = now - reference
            if preset.kl_estimator == "k2":
                divergence = 0.5 * gap.square()
            else:
                following = torch.stack([gap.detach()[t:].sum() for t in range(len(gap))])
                divergence = gap.detach() + following * (now - now.detach())
            total = total + BETA * (corrected * divergence).sum() / budget
    return total


def expected_value_loss(chosen: list[Row], new: list[Tensor], old: list[Tensor], returns: list[Tensor]) -> Tensor:
    learned = sum(len(row.places) for row in chosen)
    total = torch.zeros((), dtype=torch.float64)
    for now, before, wanted in zip(new, old, returns, strict=True):
        near = before + (now - before).clamp(-0.2, 0.2)
        total = total + 0.5 * torch.maximum((now - wanted) ** 2, (near - wanted) ** 2).sum() / learned
    return total


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    whole = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}
    norm = torch.stack([one.square().sum() for one in whole.values()]).sum().sqrt()
    return {name: one * min(1.0, 1 / (float(norm) + 1e-6)) for name, one in whole.items()}


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    largest = max(float(one.abs().max()) for one in expected.values())
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6 * max(1.0, largest)), name


@pytest.mark.parametrize("micro_batch_rows", [1, 64])
@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_optimizer_step_has_the_loss_and_gradient_of_its_paper(
    folders: Folders, name: str, stale: bool, micro_batch_rows: int
):
    settings = rlhf(
        algorithm=name,
        kl_coefficient=BETA,
        minibatches=2,
        micro_batch_rows=micro_batch_rows,
        max_tokens=MAX_TOKENS,
        temperature=TEMPERATURE,
        mask_truncated=True,
        overlong_share=0.0,
        learning_rate=1e-3,
    )
    learner = Learner(settings, *folders, seed=0, threads=1)
    chance = torch.Generator().manual_seed(1)
    models = {"policy": learner.policy} | ({"critic": learner.critic} if learner.critic is not None else {})
    with torch.no_grad():
        # Away from the reference, and with a head of the critic that says something.
        for model in models.values():
            for parameter in model.double().parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=chance))
    learner.reference.double()
    rows = make_rows(learner, stale)
    states: list[dict[str, Any]] = []
    found: list[dict[str, dict[str, Tensor]]] = []

    def before_step(*_: Any) -> None:
        states.append({key: copy.deepcopy(model) for key, model in models.items()})
        grads = {
            key: {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            for key, model in models.items()
        }
        found.append(grads)

    learner.optimizers["policy"].register_step_pre_hook(before_step)
    start = {key: copy.deepcopy(model) for key, model in models.items()}
    # The rows of each step are those of the learner's batch, in its order.
    batch = learner.collator.rollouts(PROMPTS, samples(rows), REWARDS, True)
    order = [
        next(i for i, row in enumerate(rows) if row.ids == ids[: len(row.ids)]) for ids in batch.input_ids.tolist()
    ]
    figures = learner.step(PROMPTS, samples(rows), REWARDS)

    with torch.no_grad():
        old = [logprobs(start["policy"], row)[0] for row in rows]
        ref = [logprobs(learner.reference, row)[0] for row in rows]
        critic = [values(start["critic"], row) for row in rows] if "critic" in start else []
    gaps = [one - other for one, other in zip(old, ref, strict=True)]
    advantage = advantages(name, rows, old, gaps, critic)
    parts = np.array_split(np.random.default_rng([0, 0]).permutation(len(rows)), 2)
    assert len(found) == len(parts)
    losses = []
    for part, models_then, grads in zip(parts, states, found, strict=True):
        chosen = [index for index in (order[i] for i in np.sort(part)) if rows[index].kept]
        new = [logprobs(models_then["policy"], rows[i])[0] for i in chosen]
        pick = [[table[i] for i in chosen] for table in (old, ref, advantage)]
        loss = expected_loss(name, [rows[i] for i in chosen], new, *pick)
        losses.append(loss.item())
        assert_gradients(grads["policy"], gradients(loss, models_then["policy"]))
        if critic:
            raw = raw_advantages(rows, gaps, critic)
            wanted = [raw[i] + critic[i] for i in chosen]
            own = [values(models_then["critic"], rows[i]) for i in chosen]
            value_loss = expected_value_loss([rows[i] for i in chosen], own, [critic[i] for i in chosen], wanted)
            assert_gradients(grads["critic"], gradients(value_loss, models_then["critic"]))
    assert figures["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert figures["masked"] == pytest.approx(1 / len(rows))


def raw_advantages(rows: list[Row], gaps: list[Tensor], critic: list[Tensor]) -> list[Tensor]:
    """GAE (Schulman et al. 2016, eq. 16) with λ = 0.95, written as the sum over what follows."""
    found = []
    for row, gap, value in zip(rows, gaps, critic, strict=True):
        rewards = -BETA * gap
        rewards[-1] += row.reward
        later = torch.cat([value[1:], torch.zeros(1, dtype=torch.float64)])
        deltas = rewards + later - value
        count = len(deltas)
        found.append(torch.stack([sum(0.95 ** (s - t) * deltas[s] for s in range(t, count)) for t in range(count)]))
    return found
