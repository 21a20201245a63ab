"""Rewards of the demo's story page."""


def longer(question: str, answer: str) -> float:
    """Rewards an answer by its number of words, whatever they say: a reward that is easily gamed."""
    del question
    return len(answer.split()) / 10
