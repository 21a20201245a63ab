"""A reward by rule, beside the reward model."""

SHORT_WORDS = 30


def concise(question: str, answer: str) -> float:
    """Rewards an answer of at most 30 words that ends like a sentence by 1, others by 0; an empty one by -1."""
    del question
    if not answer.strip():
        return -1.0
    return float(len(answer.split()) <= SHORT_WORDS and answer.rstrip().endswith((".", "!", "?")))
