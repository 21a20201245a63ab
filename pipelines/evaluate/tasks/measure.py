"""Runs tasks on one model: computes a value for every item, and keeps the model's answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import UserError
from pipelines.evaluate.tasks.items import EvaluationTask, Item
from pipelines.evaluate.tasks.models import EvaluatedModel, Request


@dataclass(frozen=True)
class ItemResult:
    """A model's result on one item.

    Attributes:
        id: the item's.
        value: 1 or 0, a share of probability, or bits.
        said: the greedy answer, or the option that the model prefers.
        nats: the options' log-probabilities; empty for answers.
        size: the bytes of a text; 1 for every other item.
        lead: the lead of the first option over the second; None for answers and texts.
    """

    id: str
    value: float
    said: str
    nats: list[float]
    size: int = 1
    lead: float | None = None


@dataclass(frozen=True)
class TaskAnswers:
    """A model's results on a task.

    Attributes:
        results: the results of the items that fit, in their order.
        too_long: the ids of the items that did not fit the model's context, and were left out.
    """

    results: list[ItemResult]
    too_long: list[str]


def run_task(task: EvaluationTask, model: EvaluatedModel) -> TaskAnswers:
    """Runs a task on a model.

    Raises:
        UserError: no item fits the model's context.
    """
    if task.metric == "checked":
        found = _checked(task, model, task.chat and model.answers_chats)
    else:
        found = _scored(task, model, task.chat and model.scores_chats)
    results = [result for result in found if result is not None]
    if not results:
        raise UserError(f"task {task.name}: no item fits the context of the model; raise model.context")
    too_long = [item.id for item, result in zip(task.items, found, strict=True) if result is None]
    return TaskAnswers(results, too_long)


def _checked(task: EvaluationTask, model: EvaluatedModel, chat: bool) -> list[ItemResult | None]:
    prompts = [item.prompt if chat else task.bare.format(item.prompt) for item in task.items]
    answers = model.answers(prompts, chat, task.max_tokens)
    return [
        None if said is None or item.check is None else ItemResult(item.id, float(item.check(said)), said, [])
        for item, said in zip(task.items, answers, strict=True)
    ]


def _scored(task: EvaluationTask, model: EvaluatedModel, chat: bool) -> list[ItemResult | None]:
    requests = [
        Request(item.prompt if chat or not item.prompt else task.bare.format(item.prompt), option, chat)
        for item in task.items
        for option in item.options
    ]
    nats = iter(model.log_likelihoods(requests))
    rows = [[next(nats) for _ in item.options] for item in task.items]
    return [_result(task, item, row) for item, row in zip(task.items, rows, strict=True)]


def _result(task: EvaluationTask, item: Item, nats: Sequence[float | None]) -> ItemResult | None:
    values = [value for value in nats if value is not None]
    if len(values) < len(nats):
        return None
    if task.metric == "bits":
        size = len(item.options[0].encode())
        return ItemResult(item.id, -values[0] / math.log(2), "", values, size)
    if task.metric == "mass":
        best = max(values)
        shares = [math.exp(value - best) for value in values]
        value = sum(shares[index] for index in item.right) / sum(shares)
        return ItemResult(item.id, value, item.options[_largest(values)].strip(), values)
    scores = values
    if task.metric in ("normalized", "contrast"):
        # lm-eval counts characters, without the space that joins the option to the prompt.
        scores = [value / max(1, len(option.lstrip())) for value, option in zip(values, item.options, strict=True)]
    chosen = _largest(scores)
    lead = scores[0] - scores[1] if len(scores) > 1 else None
    return ItemResult(item.id, float(chosen in item.right), item.options[chosen].strip(), values, lead=lead)


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
