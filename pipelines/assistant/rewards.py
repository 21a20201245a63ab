"""A reward by rule, beside the reward model."""

from actors.types import RewardInput

SHORT_WORDS = 30


def concise(question: RewardInput, answer: str) -> float:
    """Rewards an answer of at most 30 words that ends like a statement by 1, others by 0; an empty one, or one that
    repeats the question, by -1.
    """
    text = answer.strip()
    if not text or text in question.text:
        return -1.0
    return float(len(text.split()) <= SHORT_WORDS and text.endswith((".", "!")))
