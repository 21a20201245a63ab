"""Reward functions for answers that can be checked; a recipe names them as actors.rewards.builtin:NAME.

Both compare the answer with the field `answer` of the prompt's row.
"""

import re
from decimal import Decimal

from actors.types import RewardInput

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def same_text(question: RewardInput, answer: str) -> float:
    """Returns 1 if the answer is the expected one but for case and spaces, else 0.

    Raises:
        ValueError: the prompt's row has no field `answer`.
    """
    return float(answer.casefold().split() == _expected(question).casefold().split())


def same_number(question: RewardInput, answer: str) -> float:
    """Returns 1 if the answer's last number is the last one of the expected answer (as in GSM8K's "#### 72"), else 0.

    Raises:
        ValueError: the prompt's row has no field `answer`, or no number is in it.
    """
    wanted = _numbers(_expected(question))
    if not wanted:
        raise ValueError(f"the right answer {_expected(question)!r} holds no number")
    return float(_numbers(answer)[-1:] == wanted[-1:])


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in NUMBER.findall(text)]


def _expected(question: RewardInput) -> str:
    if "answer" not in question.metadata:
        raise ValueError("the prompt's row has no field 'answer' to compare with")
    return question.metadata["answer"]
