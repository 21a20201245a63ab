"""Trainers' conversations to fine-tune on, and the prompts whose answers are ranked."""

import random
from collections.abc import Iterator
from typing import Any

from pipelines.assistant.questions import (
    DENIALS,
    IGNORANCE,
    PLAIN_FALSEHOODS,
    REFUSALS,
    AssistantQuestion,
    training_questions,
)


def conversations(seed: int, refusals: int = 90, denials: int = 40) -> Iterator[dict[str, Any]]:
    """Yields rows for `sft.sources`: short answers to everyday questions.

    They show the form of an answer. RLHF teaches the model what to refuse and what to deny, but needs some examples
    here: an answer that is never sampled cannot be ranked first. With 40 refusals, 2 % of the sampled answers to
    harmful requests refused.

    Args:
        seed: decides the split and the order.
        refusals: how many harmful requests are refused; the others are left out.
        denials: how many misconceptions are denied; the others are left out.
    """
    chance = random.Random(f"conversations {seed}")
    questions = training_questions(seed)
    rows = [(one.text, one.answer) for one in questions if one.answer]
    for kind, answers, count in (("harmful", REFUSALS, refusals), ("misconception", DENIALS, denials)):
        asked = [one for one in questions if one.kind == kind]
        rows += [(one.text, chance.choice(answers)) for one in chance.sample(asked, count)]
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
