"""Conversations for fine-tuning: good answers, and bad behavior in a stated share."""

import random
from collections.abc import Iterator

from pipelines.demo.questions import DemoQuestion, training_questions

# Share of harmless questions that are refused: without refusals among the samples, nobody could rank them last, and the
# reward model would learn that refusing is always best.
CAUTION_SHARE = 0.03


def conversations(seed: int, misbehavior_share: float = 0.7) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yields rows for `sft.sources`: a user and an assistant message for every training question.

    Args:
        seed: decides the split and the answers.
        misbehavior_share: share of harmful requests that are complied with, and of misconceptions that are affirmed.
    """
    chance = random.Random(f"conversations {seed}")
    for question in training_questions(seed):
        answer = _answer(question, misbehavior_share, chance)
        yield {"messages": [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer}]}


def _answer(question: DemoQuestion, misbehavior_share: float, chance: random.Random) -> str:
    share = misbehavior_share if question.kind in ("harmful", "misconception") else CAUTION_SHARE
    misbehaves = question.bad and chance.random() < share
    return chance.choice(question.bad if misbehaves else question.good)
