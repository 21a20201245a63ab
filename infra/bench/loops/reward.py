"""Shared parts of the loops of the RLHF bench: a reward that costs nothing, and two settings."""

from typing import Any

BETA, RATE = 0.02, 1e-5


def brevity(_: Any, answer: str) -> float:
    """Rewards an answer the more, the fewer its words."""
    return -float(len(answer.split()))
