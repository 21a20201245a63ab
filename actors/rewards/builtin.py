"""Reward functions for answers that can be checked: name them in `rlhf.rewards` as actors.rewards.builtin:NAME.

Both compare with the field `answer` of the prompt's row.
"""

import re
from decimal import Decimal

from actors.types import RewardInput

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def same_text(question: RewardInput, answer: str) -> float:
    """1 if the answer is the right one, but for case and spaces; else 0."""
    return float(answer.casefold().split() == _right(question).casefold().split())


def same_number(question: RewardInput, answer: str) -> float:
    """1 if the last number in the answer is the last one in the right answer (as in GSM8K's "#### 72"); else 0."""
    wanted = _numbers(_right(question))
    if not wanted:
        raise ValueError(f"the right answer {_right(question)!r} holds no number")
    return float(_numbers(answer)[-1:] == wanted[-1:])


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in NUMBER.findall(text)]


def _right(question: RewardInput) -> str:
    if "answer" not in question.metadata:
        raise ValueError("the prompt's row has no field 'answer' to compare with")
    return question.metadata["answer"]
