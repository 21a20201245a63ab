"""Random texts, and how alike two of them are."""

import random

from pipelines.corpus.dedup.minhash import (
    shingles,
)


def jaccard(one: str, other: str) -> float:
    first, second = set(shingles(one)), set(shingles(other))
    return len(first & second) / len(first | second)


def random_text(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=6)) for _ in range(count)]
