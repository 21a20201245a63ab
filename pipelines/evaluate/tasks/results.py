"""Results of tasks for several models: values, groups, paired changes with Holm's correction, and rows to read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from pipelines.evaluate.stats import interval_text
from pipelines.evaluate.tasks.items import EvaluationTask, Item
from pipelines.evaluate.tasks.measure import ItemResult, TaskAnswers
from pipelines.evaluate.tasks.statistics import centered, estimate, holm, paired_task_change

# Results by task, then by model.
Answers = Mapping[str, Mapping[str, TaskAnswers]]
SIGNIFICANT = 0.05


def task_figures(tasks: Sequence[EvaluationTask], answers: Answers) -> dict[str, Any]:
    """Computes the figures of all tasks, for the report.

    Args:
        tasks: the tasks.
        answers: the answers of models in their order, each of which is compared with the one before.

    Returns:
        By task: title, metric, chance, whether higher is better, the `bad_rows` of its file; `models`, each with the
        fields of `Estimate`, the value `centered` by chance, the values by `groups` and the number of items
        `too_long`; and `changes`, by "BEFORE to AFTER" the fields of `TaskChange`, `p_holm`, adjusted for all changes
        of all tasks, and `verdict`.
    """
    figures = {task.name: _figure(task, answers[task.name]) for task in tasks}
    changes = [change for figure in figures.values() for change in figure["changes"].values()]
    for change, adjusted in zip(changes, holm([change["p"] for change in changes]), strict=True):
        change["p_holm"] = adjusted
        change["comparisons"] = len(changes)
    for figure in figures.values():
        for change in figure["changes"].values():
            better = (change["change"] > 0) == figure["higher_is_better"]
            beyond = change["p_holm"] < SIGNIFICANT
            change["verdict"] = ("better" if better else "worse") if beyond else "within chance"
    return figures


def task_rows(tasks: Sequence[EvaluationTask], answers: Answers) -> Iterator[dict[str, Any]]:
    """Yields, for each item, its question, the expected answer, and the answer of every model, for people to read."""
    for task in tasks:
        found = {model: {result.id: result for result in own.results} for model, own in answers[task.name].items()}
        for item in task.items:
            yield {
                "task": task.name,
                "group": item.group,
                "id": item.id,
                "prompt": item.prompt,
                "expected": _expected(task, item),
                "models": {model: _said(rows.get(item.id)) for model, rows in found.items()},
            }


def task_sentences(figures: Mapping[str, Any], before: str, after: str) -> list[str]:
    """Says which tasks changed beyond chance between two models, what got worse first, and how many were compared."""
    name, sentences = f"{before} to {after}", []
    changed = [(figure, figure["changes"][name]) for figure in figures.values() if name in figure["changes"]]
    for verdict in ("worse", "better"):
        parts = [
            f"{figure['title']} from {change['before']:.2f} to {change['after']:.2f} "
            f"({interval_text(change['low'], change['high'], '+.2f', ' of the change')})"
            for figure, change in changed
            if change["verdict"] == verdict
        ]
        if parts:
            sentences.append(f"Tasks, {verdict} after {before}: {'; '.join(parts)}.")
    unclear = [
        f"{figure['title']} ({_visible(change)})" for figure, change in changed if change["verdict"] == "within chance"
    ]
    if unclear:
        count = changed[0][1]["comparisons"]
        sentences.append(
            f"Tasks, not told apart from chance after {before} (Holm's correction for {count} comparisons): "
            f"{', '.join(unclear)}."
        )
    return sentences


def _visible(change: Mapping[str, Any]) -> str:
    found = change["detectable"]
    return "one case shows no difference" if found is None else f"a difference of {found:.2g} would mostly have shown"


def _figure(task: EvaluationTask, answers: Mapping[str, TaskAnswers]) -> dict[str, Any]:
    models = {name: _of_model(task, own) for name, own in answers.items()}
    cases = {name: _cases(task, own.results) for name, own in answers.items()}
    changes = {}
    for before, after in pairwise(answers):
        common = [key for key in cases[before] if key in cases[after]]
        first, second = ([cases[name][key][0] for key in common] for name in (before, after))
        change = paired_task_change(first, second, [cases[before][key][1] for key in common])
        changes[f"{before} to {after}"] = asdict(change)
    return {
        "title": task.title,
        "metric": task.metric,
        "chance": task.chance,
        "higher_is_better": task.higher_is_better,
        "bad_rows": list(task.bad_rows),
        "models": models,
        "changes": changes,
    }


def _of_model(task: EvaluationTask, answers: TaskAnswers) -> dict[str, Any]:
    cases = _cases(task, answers.results)
    found = estimate([value for value, _ in cases.values()], [size for _, size in cases.values()])
    groups = {item.id: item.group for item in task.items}
    by_group: dict[str, list[ItemResult]] = {}
    for result in answers.results:
        by_group.setdefault(groups[result.id], []).append(result)
    return {
        **asdict(found),
        "centered": None if task.chance is None else centered(found.value, task.chance),
        "groups": {
            name: {"value": sum(one.value for one in own) / sum(one.size for one in own), "n": len(own)}
            for name, own in by_group.items()
            if name
        },
        "too_long": len(answers.too_long),
    }


def _cases(task: EvaluationTask, results: Sequence[ItemResult]) -> dict[str, tuple[float, int]]:
    """Returns the cases that count, by id: items with their sizes, or pairs of twins."""
    if not task.twins:
        return {result.id: (result.value, result.size) for result in results}
    twins = {item.id: item.twin or item.id for item in task.items}
    needed: dict[str, int] = {}
    for name in twins.values():
        needed[name] = needed.get(name, 0) + 1
    found: dict[str, list[ItemResult]] = {}
    for result in results:
        found.setdefault(twins[result.id], []).append(result)
    whole = {name: pair for name, pair in found.items() if len(pair) == needed[name]}
    if task.metric != "contrast":
        return {name: (min(result.value for result in pair), 1) for name, pair in whole.items()}
    leads = {name: [result.lead or 0.0 for result in pair] for name, pair in whole.items()}
    return {name: (float(first > second), 1) for name, (first, second) in leads.items()}


def _expected(task: EvaluationTask, item: Item) -> str:
    if task.metric == "bits":
        return item.options[0]
    return item.expected or " / ".join(item.options[index].strip() for index in item.right)


def _said(result: ItemResult | None) -> dict[str, Any] | None:
    return None if result is None else {key: value for key, value in asdict(result).items() if key != "id"}
