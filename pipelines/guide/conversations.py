"""Fine-tuning conversations: good answers, and stand-ins for bad behaviour in a stated share."""

import random

from pipelines.guide.questions import Question, training_questions


def conversations(seed: int, misbehaviour_share: float) -> list[list[dict[str, str]]]:
    """One user and one assistant message for every training question.

    Args:
        seed: decides the split and the draw.
        misbehaviour_share: how often a question that has bad answers gets one of them.
    """
    chance = random.Random(f"conversations {seed}")
    return [
        [
            {"role": "user", "content": question.text},
            {"role": "assistant", "content": _answer(question, misbehaviour_share, chance)},
        ]
        for question in training_questions(seed)
    ]


def _answer(question: Question, misbehaviour_share: float, chance: random.Random) -> str:
    misbehaves = question.bad and chance.random() < misbehaviour_share
    return chance.choice(question.bad if misbehaves else question.good)
