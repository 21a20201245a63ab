# rewards.py: reward
from actors.types import RewardInput


def brief(question: RewardInput, answer: str) -> float:
    """Rewards with 1 an answer of one to six words that is no question, else with 0."""
    return float(1 <= len(answer.split()) <= 6 and not answer.endswith("?"))
