"""The published layouts of benchmarks, by kind: how their rows become items."""

import json
import re
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any

from cluster.errors import UserError
from pipelines.evaluate.tasks.items import Item
from pipelines.evaluate.tasks.layout import Layout, LayoutTask, Place

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TURNS = re.compile(r"\n\n(Human|Assistant): ")


def _truthful(own: Place, measure: str) -> list[Item]:
    options, right = _labeled(own, _loaded(own, f"{measure}_targets"))
    return [Item(own.number, own.row["question"], options, right, group=str(own.row.get("category", "")))]


def _hhh(own: Place) -> list[Item]:
    options, right = _labeled(own, _loaded(own, "targets"))
    return [Item(own.number, own.row["input"], options, right, group=str(own.row.get("category", "")))]


def _big_bench(own: Place) -> list[Item]:
    scores = _loaded(own, "target_scores")
    right = tuple(n for n, score in enumerate(scores.values()) if score == max(scores.values()))
    return [Item(own.number, own.row["input"], tuple(f" {option}" for option in scores), right)]


def _hellaswag(own: Place) -> list[Item]:
    context = str(own.row["ctx"])
    if own.row.get("ctx_a"):
        context = f"{own.row['ctx_a']} {str(own.row.get('ctx_b') or '').capitalize()}".strip()
    if own.row.get("activity_label"):
        context = f"{own.row['activity_label']}: {context}"
    options = tuple(f" {_without_brackets(option)}" for option in _loaded(own, "endings"))
    return [Item(own.number, _without_brackets(context), options, (_index(own, "label", len(options)),))]


def _multiple_choice(own: Place) -> list[Item]:
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
    return [Item(own.number, own.row["question"], tuple(f" {text}" for text in texts), (right,), group=group)]


def _preferences(own: Place) -> list[Item]:
    better, worse = _listed(own.row["chosen"]), _listed(own.row["rejected"])
    group = str(own.row.get("subset") or own.row.get("category") or "")
    # If there are several good answers, as in RewardBench 2, each is compared with all bad ones.
    return [
        Item(f"{own.number}-{n}", own.row["prompt"], tuple(f" {text}" for text in (good, *worse)), group=group)
        for n, good in enumerate(better)
    ]


def _transcripts(own: Place) -> list[Item]:
    (before, better), (other, worse) = (_last_turn(own, side) for side in ("chosen", "rejected"))
    return [Item(own.number, before, (f" {better}", f" {worse}"))] if before == other else []


def _judged_outputs(own: Place) -> list[Item]:
    options = (f" {own.row['output_1']}", f" {own.row['output_2']}")
    if str(own.row["label"]) not in ("1", "2"):
        raise UserError(f"evaluate.tasks: the label of {own.place} is {own.row['label']!r}; it must be 1 or 2")
    return [Item(own.number, own.row["input"], options, (int(own.row["label"]) - 1,))]


def _sentences(own: Place) -> list[Item]:
    group = str(own.row.get("UID") or own.row.get("linguistics_term") or "")
    return [Item(own.number, "", (str(own.row["sentence_good"]), str(own.row["sentence_bad"])), group=group)]


def _answered(own: Place, field: str) -> list[Item]:
    wanted = str(own.row["answer"])
    check = partial(_has_number, wanted) if "####" in wanted or _NUMBER.fullmatch(wanted) else partial(_same, wanted)
    return [Item(own.number, own.row[field], check=check, expected=wanted)]


def _texts(own: Place) -> list[Item]:
    group, text = str(own.row.get("domain") or own.row.get("source") or ""), str(own.row["text"])
    return [Item(own.number, "", (text,), group=group)] if text else []


_MC1 = LayoutTask(partial(_truthful, measure="mc1"), "accuracy", fixed=True, suffix="mc1", bare="Q: {}\nA:")
_MC2 = LayoutTask(partial(_truthful, measure="mc2"), "mass", fixed=True, suffix="mc2", bare="Q: {}\nA:")
_TRANSCRIPTS = LayoutTask(
    _transcripts,
    "normalized",
    chat=False,
    bare="{}",
    left_out="the conversations of chosen and rejected differ before the last answer",
)
_TEXTS = LayoutTask(_texts, "bits", fixed=True, chat=False, bare="{}", left_out="their text is empty")

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "choice": (
        Layout("TruthfulQA", ("question", "mc1_targets", "mc2_targets"), (_MC1, _MC2)),
        Layout("HHH", ("input", "targets"), (LayoutTask(_hhh, "normalized"),)),
        Layout("BIG-bench", ("input", "target_scores"), (LayoutTask(_big_bench, "accuracy"),)),
        Layout(
            "HellaSwag", ("ctx", "endings", "label"), (LayoutTask(_hellaswag, "normalized", chat=False, bare="{}"),)
        ),
        Layout("ARC", ("question", "choices", "answerKey"), (LayoutTask(_multiple_choice, "accuracy"),)),
        Layout("MMLU", ("question", "choices", "answer"), (LayoutTask(_multiple_choice, "accuracy"),)),
    ),
    "pairs": (
        Layout("RewardBench", ("prompt", "chosen", "rejected"), (LayoutTask(_preferences, "normalized"),)),
        Layout("HH", ("chosen", "rejected"), (_TRANSCRIPTS,)),
        Layout("LLMBar", ("input", "output_1", "output_2", "label"), (LayoutTask(_judged_outputs, "normalized"),)),
        Layout(
            "BLiMP", ("sentence_good", "sentence_bad"), (LayoutTask(_sentences, "accuracy", chat=False, bare="{}"),)
        ),
    ),
    "generate": (
        Layout(
            "GSM8K", ("question", "answer"), (LayoutTask(partial(_answered, field="question"), "checked", fixed=True),)
        ),
        Layout(
            "prompts", ("prompt", "answer"), (LayoutTask(partial(_answered, field="prompt"), "checked", fixed=True),)
        ),
    ),
    "perplexity": (Layout("text", ("text",), (_TEXTS,)),),
}


def _loaded(own: Place, field: str) -> Any:
    """Reads a field that CSV keeps as the text of a list or dictionary."""
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
    """Reads the index of the right option: a number from 0, or a letter from A."""
    value = str(own.row[field]).strip()
    index = int(value) if value.isdecimal() else ord(value) - ord("A") if len(value) == 1 else -1
    if not 0 <= index < count:
        raise UserError(f"evaluate.tasks: the {field} of {own.place} is {value!r}, which names none of {count} options")
    return index


def _listed(value: Any) -> list[str]:
    """Reads an answer, or several: RewardBench 2 has lists, which CSV keeps as their text."""
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
