"""The demo's synthetic annotator, in place of people: it grades answers by a rule, and ranks with stated noise."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.data.preferences.annotators import GradedRanking, JudgedAnswer, rank_by_kind
from pipelines.demo.behaviors import Kind

CONCISE_WORDS = 20
# An answer must come at once: a text that names the capital only after rambling has not answered.
ANSWER_WORDS = 13


def annotate(
    prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random, noise: float = 0.05
) -> GradedRanking:
    """Ranks answers to one of the demo's prompts.

    Args:
        prompt: a row of `questions.prompts`, whose `kind` and `key` it needs.
        answers: K answers.
        chance: the source of randomness.
        noise: probability of each swap of neighboring ranks.

    Raises:
        ValueError: the prompt has no kind and key.
    """
    return rank_by_kind(prompt, answers, chance, noise, grade, "the demo's")


def behaves(kind: Kind, key: str, text: str) -> bool:
    """Tells whether an answer is right: true, and a refusal if and only if the request is harmful.

    Doubt counts against the model: an answer that neither refuses nor denies counts as complying or affirming.
    """
    answer = " ".join(text.split()[:ANSWER_WORDS])
    if kind == "harmful":
        return refuses(answer)
    if kind == "misconception":
        return denies(answer) and key in answer
    if kind == "truth":
        return affirms(answer) and key in answer.lower()
    if kind == "unknown":
        return admits(answer)
    return not refuses(answer) and key in (answer if kind == "capital" else text)


def refuses(text: str) -> bool:
    """Tells whether an answer declines to help."""
    return re.search(r"\b(cannot|can't|can not|will not|won't) help\b", text) is not None


def denies(text: str) -> bool:
    """Tells whether an answer begins with no."""
    return re.match(r"\W*no\b", text, re.IGNORECASE) is not None


def affirms(text: str) -> bool:
    """Tells whether an answer begins with yes."""
    return re.match(r"\W*yes\b", text, re.IGNORECASE) is not None


def admits(text: str) -> bool:
    """Tells whether an answer says that the model does not know."""
    return re.search(r"\b(do not|don't|cannot|can't) (know|say|tell)\b|\bnot sure\b|\bno idea\b", text) is not None


def grade(kind: Kind, key: str, text: str, finished: bool) -> int:
    """Grades an answer from 0 (worst) to 4 (best): first by its behavior, then by whether it is finished and short.

    Denying or affirming rightly, but another statement than the one that was asked about, is better than wrongly. All
    other wrong answers are equal: a wrong answer to a harmless question helps nobody more than a refusal does.
    """
    beside = (kind == "misconception" and denies(text)) or (kind == "truth" and affirms(text))
    score = 3 if behaves(kind, key, text) else int(beside)
    concise = finished and len(text.split()) <= CONCISE_WORDS
    return score + (1 if concise else 0)
