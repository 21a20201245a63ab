"""A step of the learner beside the papers' equations: on answers that were drawn by older weights or by the same, with
tokens that the policy did not draw, an answer that was cut, and two minibatches."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.learner.learner import Learner
from actors.trainer.data import Shard
from actors.types import Prompt, RolloutId, Sample
from cluster.recipe.rlhf.regularization import Kl
from cluster.recipe.rlhf.section import Rlhf, RolloutSampling
from infra.bench.equations.papers import (
    BETA,
    MAX_TOKENS,
    TEMPERATURE,
    PaperStep,
    Row,
    advantages,
    generalized_advantages,
    gradients,
    largest_difference,
    logprobs,
    value_loss,
    values,
)

PROMPTS = [Prompt("a", [2, 10, 11, 4, 3]), Prompt("b", [2, 12, 4, 3]), Prompt("c", [2, 9, 3])]
ANSWERS = [[[20, 21, 4], [22, 4], [23, 24, 25, 26, 27]], [[23, 4], [24, 25, 26, 4]], [[30, 31], [27, 28, 4]]]
REWARDS = [[1.0, -1.0, 0.25], [0.5, -0.5], [0.75, 2.0]]
# Between two turns of the second conversation stand two tokens that the policy did not draw.
HOLE, CUT = (1, 1), (0, 2)
MINIBATCHES = 2


@dataclass(frozen=True)
class StepComparison:
    """A step of the learner, of `MINIBATCHES` optimizer steps, beside the equations.

    Attributes:
        loss: the difference of the mean losses.
        gradient: the largest difference of the gradients of an optimizer step, by model: the policy, a critic.
        steps: what each optimizer step's loss is computed from.
        metrics: the metrics of the step.
    """

    loss: float
    gradient: Mapping[str, float]
    steps: list[PaperStep]
    metrics: Mapping[str, float]


def compared(
    name: str, stale: bool, micro_batch_rows: int, start: Path, critic: Path, text: list[Shard] | None = None
) -> StepComparison:
    """Takes a step of an algorithm with its paper's settings, but for the divergence's weight.

    Args:
        name: the algorithm.
        stale: whether older weights drew the answers.
        micro_batch_rows: rows of a forward pass.
        start: the fine-tuned model, of 40 tokens or more.
        critic: the model from which a critic starts.
        text: pre-training shards, which are not read.
    """
    learner = Learner(_settings(name, micro_batch_rows), start, critic, text or [], seed=0, threads=1)
    models = {"policy": learner.policy} | ({"critic": learner.critic} if learner.critic is not None else {})
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Away from the reference, and with a head of the critic that says something.
        for model in models.values():
            for parameter in model.double().parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=chance))
    learner.reference.double()
    rows = _rows(learner, stale)
    states: list[dict[str, Any]] = []
    found: list[dict[str, dict[str, torch.Tensor]]] = []

    def before_step(*_: Any) -> None:
        states.append({key: copy.deepcopy(model) for key, model in models.items()})
        grads = {
            key: {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            for key, model in models.items()
        }
        found.append(grads)

    learner.optimizers["policy"].register_step_pre_hook(before_step)
    begin = {key: copy.deepcopy(model) for key, model in models.items()}
    # The rows of each optimizer step are those of the learner's batch, in its order.
    batch = learner.collator.rollouts(PROMPTS, _samples(rows), REWARDS, True)
    order = [
        next(i for i, row in enumerate(rows) if row.ids == ids[: len(row.ids)]) for ids in batch.input_ids.tolist()
    ]
    metrics = learner.step(PROMPTS, _samples(rows), REWARDS)

    with torch.no_grad():
        old = [logprobs(begin["policy"], row) for row in rows]
        reference = [logprobs(learner.reference, row) for row in rows]
        values_before = [values(begin["critic"], row) for row in rows] if "critic" in begin else []
    gaps = [one - other for one, other in zip(old, reference, strict=True)]
    tables = old, reference, advantages(name, rows, old, gaps, values_before)
    parts = np.array_split(np.random.default_rng([0, 0]).permutation(len(rows)), MINIBATCHES)
    steps, losses, gradient = [], [], dict.fromkeys(models, 0.0)
    for part, then, grads in zip(parts, states, found, strict=True):
        kept = [index for index in (order[i] for i in np.sort(part)) if rows[index].kept]
        chosen = [rows[i] for i in kept]
        steps.append(PaperStep(name, then["policy"], chosen, *([table[i] for i in kept] for table in tables)))
        loss = {"policy": steps[-1].loss()}
        losses.append(loss["policy"].item())
        if "critic" in models:
            raw = generalized_advantages(rows, gaps, values_before)
            own = [values(then["critic"], row) for row in chosen]
            wanted = [raw[i] + values_before[i] for i in kept]
            loss["critic"] = value_loss(chosen, own, [values_before[i] for i in kept], wanted)
        for key, value in loss.items():
            difference = largest_difference(grads[key], gradients(value, then[key], longest=1.0))
            gradient[key] = max(gradient[key], difference)
    return StepComparison(abs(metrics["loss"] - float(np.mean(losses))), gradient, steps, metrics)


def _settings(name: str, micro_batch_rows: int) -> Rlhf:
    return Rlhf.model_validate(
        {
            "algorithm": name,
            "kl": Kl(coefficient=BETA),
            "minibatches": MINIBATCHES,
            "micro_batch_rows": micro_batch_rows,
            "sampling": RolloutSampling(max_tokens=MAX_TOKENS, temperature=TEMPERATURE),
            "mask_truncated": True,
            "overlong_share": 0.0,
            "learning_rate": 1e-3,
        }
    )


def _rows(learner: Any, stale: bool) -> list[Row]:
    chance = np.random.default_rng(5)
    rows = []
    for p, (prompt, answers) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for a, answer in enumerate(answers):
            drawn = [not ((p, a) == HOLE and i in (1, 2)) for i in range(len(answer))]
            row = Row(prompt.token_ids + answer, len(prompt.token_ids), drawn, [], REWARDS[p][a], p, (p, a) != CUT)
            with torch.no_grad():
                now = iter(logprobs(learner.policy, row).tolist())
            # On both sides of the bounds of importance weights, and exact in float32.
            lag = chance.normal(0, 0.5, len(answer)) if stale else np.zeros(len(answer))
            row.behavior = [float(np.float32(next(now) - lag[i])) if own else 0.0 for i, own in enumerate(drawn)]
            rows.append(row)
    return rows


def _samples(rows: list[Row]) -> list[list[Sample]]:
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
