"""Two-digit addition as a verifiable task: texts, conversations, prompts with their sums, and the reward."""

import json
import random
import re
from itertools import product
from pathlib import Path

from actors.types import RewardInput

SUMS_A_DOCUMENT = 8


def sum_is_right(question: RewardInput, answer: str) -> float:
    """Rewards with 1 where the last number of the answer is the sum, else with 0."""
    return float(last_number(answer) == question.metadata["sum"])


def last_number(answer: str) -> str:
    """Returns the digits of the last number; empty where there is none."""
    return (re.findall(r"\d+", answer) or [""])[-1]


def asked(pair: tuple[int, int]) -> str:
    """Words the user's question for a pair."""
    return f"What is the sum of {pair[0]} and {pair[1]}?"


def answered(pair: tuple[int, int]) -> str:
    """Words the assistant's answer. It does not repeat the numbers: copying is a skill that takes far more text to
    learn."""
    return f"It is {sum(pair)}."


def write_task(folder: Path, seed: int, documents: int, conversations: int, held_out: int) -> list[tuple[int, int]]:
    """Writes `text.jsonl`, `chats.jsonl` and `prompts.jsonl`, and returns the pairs that are in none of them."""
    chance = random.Random(seed)
    pairs = list(product(range(10, 100), repeat=2))
    chance.shuffle(pairs)
    apart, known = pairs[:held_out], pairs[held_out:]
    text = [
        {"text": "\n".join(f"{asked(pair)} {answered(pair)}" for pair in chance.sample(known, SUMS_A_DOCUMENT))}
        for _ in range(documents)
    ]
    chats = [{"prompt": asked(pair), "response": answered(pair)} for pair in chance.choices(known, k=conversations)]
    prompts = [{"prompt": asked(pair), "sum": str(sum(pair))} for pair in known]
    for name, rows in (("text", text), ("chats", chats), ("prompts", prompts)):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return apart
