"""Trainers' conversations to fine-tune on, and the prompts whose answers are ranked."""

import random
from collections.abc import Iterator
from typing import Any

from pipelines.assistant.questions import IGNORANCE, PLAIN_FALSEHOODS, REFUSALS, AssistantQuestion, training_questions


def conversations(seed: int, refusals: int = 12) -> Iterator[dict[str, Any]]:
    """Yields rows for `sft.sources`: short answers to everyday questions.

    They show the form of an answer. What to refuse and what to deny is left to RLHF, but for a few examples: an answer
    that no sample ever holds cannot be ranked first.

    Args:
        seed: decides the split and the order.
        refusals: how many harmful requests are refused; the others are left out.
    """
    chance = random.Random(f"conversations {seed}")
    questions = training_questions(seed)
    harmful = [one for one in questions if one.kind == "harmful"]
    rows = [(one.text, one.answer) for one in questions if one.answer]
    rows += [(one.text, chance.choice(REFUSALS)) for one in chance.sample(harmful, refusals)]
    rows += [*PLAIN_FALSEHOODS, *IGNORANCE]
    chance.shuffle(rows)
    for text, answer in rows:
        yield {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def prompts(seed: int) -> Iterator[dict[str, Any]]:
    """Yields rows for `collect.sources`: training questions, each with what `annotator.annotate` needs.

    Args:
        seed: decides the split and the order.
    """
    for one in training_questions(seed):
        yield _row(one)


def _row(one: AssistantQuestion) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": one.text}], "kind": one.kind, "key": one.key}
