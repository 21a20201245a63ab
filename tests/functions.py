"""Functions that recipes of the tests name; the actors that call them import this module."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from actors.types import RewardInput


def few_conversations(seed: int) -> Iterator[dict[str, Any]]:
    """Yields a fifth of the demo's conversations for fine-tuning."""
    from pipelines.demo.conversations import conversations

    yield from islice(conversations(seed, copies=1), 1600)


def length(question: RewardInput, answer: str) -> float:
    """Rewards an answer by its number of characters."""
    return float(len(answer))


def hush(question: RewardInput, answers: list[str]) -> str | None:
    """Plays a user who speaks once more."""
    return "Go on." if len(answers) == 1 else None


def polite(question: RewardInput, answer: str) -> float:
    """Checks that an answer is not rude, which an empty one is not either."""
    return float("rude" not in answer)


def quotes(question: RewardInput, answer: str) -> float:
    """Checks an answer for words that are in this code."""
    return float(sum(word in answer for word in ("because", "therefore")))
