"""Quality rules: which documents are worth training on, and why the others are not.

The thresholds are those of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1 and appendix A1.1),
except for the least number of words, which the recipe sets: Gopher's 50 would drop every short dialogue.
"""

MEAN_WORD_LENGTH = (3.0, 10.0)
MOST_SYMBOLS_PER_WORD = 0.1
LEAST_SHARE_OF_WORDS_WITH_A_LETTER = 0.8
MOST_DUPLICATE_LINES = 0.3

TOO_FEW_WORDS = "too few words"
WORD_LENGTH = "mean word length"
SYMBOLS = "too many symbols"
LETTERS = "too few words with a letter"
REPEATED_LINES = "repeated lines"


def reason_to_drop(text: str, minimum_words: int) -> str | None:
    """The first rule that a cleaned text breaks, or None. A text exactly at a threshold is kept."""
    words = text.split()
    if len(words) < minimum_words:
        return TOO_FEW_WORDS
    mean = sum(map(len, words)) / len(words)
    if not MEAN_WORD_LENGTH[0] <= mean <= MEAN_WORD_LENGTH[1]:
        return WORD_LENGTH
    if max(text.count("#"), text.count("...") + text.count("…")) / len(words) > MOST_SYMBOLS_PER_WORD:
        return SYMBOLS
    if sum(any(map(str.isalpha, word)) for word in words) / len(words) < LEAST_SHARE_OF_WORDS_WITH_A_LETTER:
        return LETTERS
    if duplicate_line_share(text) > MOST_DUPLICATE_LINES:
        return REPEATED_LINES
    return None


def duplicate_line_share(text: str) -> float:
    """The share of a text's lines, blank ones aside, that repeat an earlier line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (len(lines) - len(set(lines))) / len(lines) if lines else 0.0
