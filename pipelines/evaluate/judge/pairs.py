"""Pairs of answers to one question, from a report, from a file of people's preferences, or from the compare page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.feedback import Feedback
from pipelines.data.source_rows import read_rows


@dataclass(frozen=True)
class Pair:
    """Two answers to a question.

    Attributes:
        question: the user's message, or a conversation as text.
        first, second: the answers.
        outcome: 1 if people prefer the first answer, 0 if the second, 0.5 for a tie; None where nobody judged.
        models: the names of the models that wrote them.
    """

    question: str
    first: str
    second: str
    outcome: float | None = None
    models: tuple[str, str] = ("", "")


def report_pairs(file: Path, first: str, second: str) -> list[Pair]:
    """Reads the answers of two models to held-out prompts from a report's `answers.json`; other rows are left out.

    Raises:
        UserError: the file cannot be read, or has no row with answers of both models.
    """
    try:
        rows: Any = json.loads(file.read_text(encoding="utf-8"))
        answered = [(row["question"], {name: own["text"] for name, own in row["answers"].items()}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no list of questions with answers, as report/answers.json is: {type(error).__name__} {error}"
        ) from error
    found = [
        Pair(question, own[first], own[second], models=(first, second))
        for question, own in answered
        if first in own and second in own
    ]
    if not found:
        known = sorted({name for _, own in answered for name in own})
        raise UserError(f"{file} has no question that {first} and {second} answered; it has answers of {known}")
    return found


def preference_pairs(file: Path) -> list[Pair]:
    """Reads people's preferences: JSONL, JSON or Parquet rows of `prompt`, `chosen` and `rejected`.

    Raises:
        UserError: a row cannot be read; the message names file and line.
    """
    found = []
    for row, place in read_rows(str(file)):
        texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{place}: prompt, chosen and rejected must be texts")
        found.append(Pair(str(texts[0]), str(texts[1]), str(texts[2]), 1.0))
    return found


def voted_pairs(database: Feedback) -> list[Pair]:
    """Reads the votes of the compare page, of people who are not excluded, in the order given."""
    found = []
    prompts = {prompt.id: prompt for prompt in database.prompts()}
    for vote in database.peoples_judgements().votes:
        answers = {str(one.id): one for one in prompts[vote.prompt_id].completions if str(one.id) in vote.ranks}
        if len(answers) != 2:
            continue
        (first, one), (second, other) = answers.items()
        ranks = vote.ranks[first], vote.ranks[second]
        outcome = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
        question = "\n".join(message["content"] for message in prompts[vote.prompt_id].messages)
        found.append(Pair(question, one.text, other.text, outcome, (one.model, other.model)))
    return found


def between(pairs: Sequence[Pair], first: str, second: str) -> list[Pair]:
    """Takes the pairs of two models' answers, turned so that the first model's answer comes first."""
    turned = [
        Pair(one.question, one.second, one.first, None if one.outcome is None else 1 - one.outcome, (first, second))
        if one.models == (second, first)
        else one
        for one in pairs
    ]
    return [one for one in turned if one.models == (first, second)]
