"""The published layouts of benchmarks, by kind: how their rows become items."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from cluster.errors import UserError
from cluster.recipe.evaluate import TaskFile
from pipelines.evaluate.tasks.items import Item, Metric, Task

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_QUESTION = "Question: {}\nAnswer:"
_TURNS = re.compile(r"\n\n(Human|Assistant): ")


@dataclass(frozen=True)
class Place:
    """A row of a file, where it is, and its number as text."""

    row: dict[str, Any]
    place: str
    number: str


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        name: of the benchmark that has it.
        fields: that its rows have.
        tasks: makes tasks of rows, a name, and the recipe's settings.
    """

    name: str
    fields: tuple[str, ...]
    tasks: Callable[[Sequence[Place], str, TaskFile], list[Task]]

    def fits(self, row: dict[str, Any]) -> bool:
        """Whether a row has the layout's fields."""
        return all(row.get(field) is not None for field in self.fields)


def _truthful(rows: Sequence[Place], name: str, _: TaskFile) -> list[Task]:
    tasks = []
    measures: dict[str, Metric] = {"mc1": "accuracy", "mc2": "mass"}
    for measure, metric in measures.items():
        items = []
        for own in rows:
            options, right = _labeled(own, _loaded(own, f"{measure}_targets"))
            group = str(own.row.get("category", ""))
            items.append(Item(own.number, own.row["question"], options, right, group=group))
        tasks.append(Task(f"{name}_{measure}", f"{name} ({measure})", metric, items, chat=True, bare="Q: {}\nA:"))
    return tasks


def _hhh(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        options, right = _labeled(own, _loaded(own, "targets"))
        items.append(Item(own.number, own.row["input"], options, right, group=str(own.row.get("category", ""))))
    return [Task(name, name, settings.metric or "normalized", items, chat=True, bare=_QUESTION)]


def _big_bench(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        scores = _loaded(own, "target_scores")
        right = tuple(n for n, score in enumerate(scores.values()) if score == max(scores.values()))
        items.append(Item(own.number, own.row["input"], tuple(f" {option}" for option in scores), right))
    return [Task(name, name, settings.metric or "accuracy", items, chat=True, bare=_QUESTION)]


def _hellaswag(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        context = str(own.row["ctx"])
        if own.row.get("ctx_a"):
            context = f"{own.row['ctx_a']} {str(own.row.get('ctx_b') or '').capitalize()}".strip()
        if own.row.get("activity_label"):
            context = f"{own.row['activity_label']}: {context}"
        options = tuple(f" {_without_brackets(option)}" for option in _loaded(own, "endings"))
        items.append(Item(own.number, _without_brackets(context), options, (_index(own, "label", len(options)),)))
    return [Task(name, name, settings.metric or "normalized", items)]


def _multiple_choice(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        choices = _loaded(own, "choices")
        texts = choices["text"] if isinstance(choices, dict) else choices
        labels = choices.get("label") if isinstance(choices, dict) else None
        key = "answerKey" if own.row.get("answerKey") is not None else "answer"
        if labels and own.row.get(key) in labels:
            right = labels.index(own.row[key])
        # A number is an index, whatever the choices are.
        elif not str(own.row.get(key)).isdecimal() and own.row.get(key) in texts:
            right = texts.index(own.row[key])
        else:
            right = _index(own, key, len(texts))
        group = str(own.row.get("subject") or own.row.get("category") or "")
        items.append(Item(own.number, own.row["question"], tuple(f" {text}" for text in texts), (right,), group=group))
    return [Task(name, name, settings.metric or "accuracy", items, chat=True, bare=_QUESTION)]


def _preferences(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        better, worse = _listed(own.row["chosen"]), _listed(own.row["rejected"])
        # Of several good answers, as in RewardBench 2, each is compared with all bad ones.
        for n, good in enumerate(better):
            options = tuple(f" {text}" for text in (good, *worse))
            group = str(own.row.get("subset") or own.row.get("category") or "")
            items.append(Item(f"{own.number}-{n}", own.row["prompt"], options, group=group))
    return [Task(name, name, settings.metric or "normalized", items, chat=True, bare=_QUESTION)]


def _transcripts(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        (before, better), (other, worse) = (_last_turn(own, side) for side in ("chosen", "rejected"))
        if before == other:
            items.append(Item(own.number, before, (f" {better}", f" {worse}")))
    if not items:
        raise UserError(f"evaluate.tasks: no pair of {rows[0].place} has one conversation with two last answers")
    _say_left_out(rows, items, "the conversations of chosen and rejected differ before the last answer")
    return [Task(name, name, settings.metric or "normalized", items, bare="{}")]


def _judged_outputs(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        options = (f" {own.row['output_1']}", f" {own.row['output_2']}")
        if str(own.row["label"]) not in ("1", "2"):
            raise UserError(f"evaluate.tasks: the label of {own.place} is {own.row['label']!r}; it must be 1 or 2")
        items.append(Item(own.number, own.row["input"], options, (int(own.row["label"]) - 1,)))
    return [Task(name, name, settings.metric or "normalized", items, chat=True, bare=_QUESTION)]


def _sentences(rows: Sequence[Place], name: str, settings: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        group = str(own.row.get("UID") or own.row.get("linguistics_term") or "")
        options = (str(own.row["sentence_good"]), str(own.row["sentence_bad"]))
        items.append(Item(own.number, "", options, group=group))
    return [Task(name, name, settings.metric or "accuracy", items)]


def _answered(rows: Sequence[Place], name: str, settings: TaskFile, field: str) -> list[Task]:
    items = []
    for own in rows:
        wanted = str(own.row["answer"])
        check = (
            partial(_has_number, wanted) if "####" in wanted or _NUMBER.fullmatch(wanted) else partial(_same, wanted)
        )
        items.append(Item(own.number, own.row[field], check=check, expected=wanted))
    tokens = settings.max_tokens
    return [Task(name, name, "checked", items, chat=True, bare=_QUESTION, max_tokens=tokens)]


def _texts(rows: Sequence[Place], name: str, _: TaskFile) -> list[Task]:
    items = []
    for own in rows:
        group = str(own.row.get("domain") or own.row.get("source") or "")
        if text := str(own.row["text"]):
            items.append(Item(own.number, "", (text,), group=group))
    if not items:
        raise UserError(f"evaluate.tasks: every text from {rows[0].place} on is empty")
    _say_left_out(rows, items, "their text is empty")
    return [Task(name, name, "bits", items)]


def _say_left_out(rows: Sequence[Place], items: Sequence[Item], why: str) -> None:
    if left_out := len(rows) - len(items):
        print(f"triptych: {left_out} of {len(rows)} rows from {rows[0].place} on are left out: {why}", file=sys.stderr)


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "choice": (
        Layout("TruthfulQA", ("question", "mc1_targets", "mc2_targets"), _truthful),
        Layout("HHH", ("input", "targets"), _hhh),
        Layout("BIG-bench", ("input", "target_scores"), _big_bench),
        Layout("HellaSwag", ("ctx", "endings", "label"), _hellaswag),
        Layout("ARC", ("question", "choices", "answerKey"), _multiple_choice),
        Layout("MMLU", ("question", "choices", "answer"), _multiple_choice),
    ),
    "pairs": (
        Layout("RewardBench", ("prompt", "chosen", "rejected"), _preferences),
        Layout("HH", ("chosen", "rejected"), _transcripts),
        Layout("LLMBar", ("input", "output_1", "output_2", "label"), _judged_outputs),
        Layout("BLiMP", ("sentence_good", "sentence_bad"), _sentences),
    ),
    "generate": (
        Layout("GSM8K", ("question", "answer"), partial(_answered, field="question")),
        Layout("prompts", ("prompt", "answer"), partial(_answered, field="prompt")),
    ),
    "perplexity": (Layout("text", ("text",), _texts),),
}


def _loaded(own: Place, field: str) -> Any:
    """A field that CSV keeps as the text of a list or dictionary."""
    value = own.row[field]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(f"evaluate.tasks: the field {field} of {own.place} is no JSON: {error}") from error


def _labeled(own: Place, targets: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    try:
        options, labels = [f" {choice}" for choice in targets["choices"]], list(targets["labels"])
    except (KeyError, TypeError) as error:
        raise UserError(f"evaluate.tasks: {own.place} has targets without choices and labels") from error
    right = tuple(n for n, label in enumerate(labels) if label)
    if not right or len(labels) != len(options):
        raise UserError(f"evaluate.tasks: {own.place} has {len(options)} choices, and labels {labels}")
    return tuple(options), right


def _index(own: Place, field: str, count: int) -> int:
    """The index of the right option: a number from 0, or a letter from A."""
    value = str(own.row[field]).strip()
    index = int(value) if value.isdecimal() else ord(value) - ord("A") if len(value) == 1 else -1
    if not 0 <= index < count:
        raise UserError(f"evaluate.tasks: the {field} of {own.place} is {value!r}, which names none of {count} options")
    return index


def _listed(value: Any) -> list[str]:
    """An answer, or several: RewardBench 2 has lists, which CSV keeps as their text."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _last_turn(own: Place, side: str) -> tuple[str, str]:
    """Splits a transcript of Anthropic's HH before its last answer."""
    text = str(own.row[side])
    last = [match for match in _TURNS.finditer(text) if match.group(1) == "Assistant"]
    if not last:
        raise UserError(f"evaluate.tasks: {side} of {own.place} has no turn of the Assistant")
    return text[: last[-1].end()].rstrip(), text[last[-1].end() :].strip()


def _without_brackets(text: str) -> str:
    """Removes the marks of WikiHow from a text of HellaSwag, as lm-eval does."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _has_number(wanted: str, said: str) -> bool:
    numbers, right = _numbers(said), _numbers(wanted.rpartition("####")[2])
    return bool(numbers) and bool(right) and numbers[-1] == right[-1]


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _same(wanted: str, said: str) -> bool:
    return said.casefold().split() == wanted.casefold().split()
