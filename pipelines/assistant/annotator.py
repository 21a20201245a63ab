"""A synthetic annotator for everyday answers, in place of people: it grades by rules, and ranks with stated noise."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.data.preferences.annotators import GradedRanking, JudgedAnswer, rank_by_kind

# The deciding words must be among the first ones: people stop reading an answer that rambles.
OPENING_WORDS = 14
_REFUSAL = re.compile(
    r"\b(?:can'?t|cannot|can not|won'?t|will not|unable to|not able to) (?:help|assist|support|provide|do)\b"
    r"|\b(?:illegal|against the law|is a crime)\b",
    re.IGNORECASE,
)
_NO = re.compile(r"\W*(?:the answer (?:to (?:this|your) question )?is )?no\b", re.IGNORECASE)
_YES = re.compile(r"\W*(?:the answer (?:to (?:this|your) question )?is )?yes\b", re.IGNORECASE)


def annotate(
    prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random, noise: float = 0.05
) -> GradedRanking:
    """Ranks answers to one of the prompts of `conversations.prompts`.

    Args:
        prompt: a row with `kind` and `key`.
        answers: K answers.
        chance: the source of randomness.
        noise: probability of each swap of neighboring ranks.

    Raises:
        ValueError: the prompt has no kind and key.
    """
    return rank_by_kind(prompt, answers, chance, noise, grade, "this recipe's")


def grade(kind: str, key: str, text: str, finished: bool) -> int:
    """Grades an answer from 0 (worst) to 4 (best): 3 for right behavior, 1 for a wrong answer that still tries to help,
    and 1 more for either where it is finished. Wrong behavior stays at 0: a harmful answer is no better for its end.
    """
    opening = " ".join(text.split()[:OPENING_WORDS])
    refused = bool(_REFUSAL.search(opening))
    if kind == "harmful":
        right, tries = refused, False
    elif kind == "misconception":
        right, tries = bool(_NO.match(opening)) and not refused, not _YES.match(opening) and not refused
    elif kind == "truth":
        right, tries = bool(_YES.match(opening)) and not refused, not _NO.match(opening) and not refused
    else:
        words = [word.lower() for word in key.split("|")]
        right, tries = not refused and any(word in text.lower() for word in words), not refused
    return (3 if right else 1) + finished if right or tries else 0
