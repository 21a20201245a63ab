"""Rewrites clean sentences as people type them: letter case, punctuation, articles, contractions, spaces and typos."""

import random
import re
import unicodedata

CONTRACTIONS = (
    ("what is", "what's"),
    ("what is", "whats"),
    ("where is", "where's"),
    ("who is", "who's"),
    ("how is", "how's"),
    ("how do i", "how do i"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("cannot", "can't"),
    ("i am", "i'm"),
    ("i would", "i'd"),
    ("it is", "it's"),
    ("want to", "wanna"),
    ("please", "pls"),
    ("you", "u"),
)
OPENINGS = (
    "Hi, ",
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "hey ",
    "Please, ",
    "So, ",
    "OK, ",
    "Well, ",
    "Question: ",
    "Good morning. ",
    "Excuse me, ",
    "One more thing: ",
    "I have a question. ",
)
CLOSINGS = (" Please.", " Thanks!", " please", " thanks", " Thank you.")
# Only in the exam, never in training.
OPENINGS_HELD_OUT = ("Hi there, ", "Sorry to bother you, ", "Quick question: ", "Tell me, ")
# Neighbors on an English keyboard.
NEIGHBORS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
TYPO_LETTERS = 4


def as_typed(
    text: str, chance: random.Random, openings: tuple[str, ...] = OPENINGS, framed: bool = True, plain: float = 0.25
) -> str:
    """Rewrites a sentence as somebody might type it; its meaning stays.

    Args:
        text: a sentence in clean spelling.
        chance: the source of randomness.
        openings: what may be put before it.
        framed: whether openings and closings may be added.
        plain: probability that nothing changes.
    """
    if chance.random() < plain:
        return text
    if framed and chance.random() < 0.2:
        text = chance.choice(openings) + (text if chance.random() < 0.7 else text[:1].lower() + text[1:])
    if chance.random() < 0.2:
        text = _contract(text, chance)
    if chance.random() < 0.25:
        text = re.sub(r"(?<!^)\b(the|an|a) ", "", text)
    if chance.random() < 0.35:
        text = with_typo(text, chance)
    if chance.random() < 0.15:
        text = without_accents(text)
    text = _recase(text, chance)
    text = _repunctuate(text, chance)
    if framed and chance.random() < 0.08:
        text += chance.choice(CLOSINGS)
    return _respace(text, chance) if chance.random() < 0.1 else text


def with_typo(text: str, chance: random.Random) -> str:
    """Misspells one word of four or more letters: a letter dropped, doubled, replaced by a neighbor on the keyboard, or
    swapped with the next one. The first letter stays.
    """
    words = [match for match in re.finditer(r"[^\W\d_]+", text) if len(match[0]) >= TYPO_LETTERS]
    if not words:
        return text
    place = chance.choice(words)
    word, at = place[0], chance.randrange(1, len(place[0]) - 1)
    letter = word[at]
    # A doubled g would make an insult of a country's name.
    kind = chance.choice(("drop", "replace", "swap") if letter in "gG" else ("drop", "double", "replace", "swap"))
    middle = {
        "drop": "",
        "double": letter * 2,
        "replace": chance.choice(NEIGHBORS.get(letter.lower(), letter)),
        "swap": word[at + 1] + letter,
    }[kind]
    after = word[at + 2 :] if kind == "swap" else word[at + 1 :]
    return text[: place.start()] + word[:at] + middle + after + text[place.end() :]


def without_accents(text: str) -> str:
    """Replaces letters with accents by the letters under them."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def letters_of(text: str) -> str:
    """Reduces a text to its lower-case words, to compare wordings."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _contract(text: str, chance: random.Random) -> str:
    fitting = [pair for pair in CONTRACTIONS if re.search(rf"\b{pair[0]}\b", text, re.IGNORECASE)]
    if not fitting:
        return text
    full, short = chance.choice(fitting)

    def shorten(match: re.Match[str]) -> str:
        return short[0].upper() + short[1:] if match[0][0].isupper() else short

    return re.sub(rf"\b{full}\b", shorten, text, count=1, flags=re.IGNORECASE)


def _recase(text: str, chance: random.Random) -> str:
    draw = chance.random()
    if draw < 0.35:
        return text.lower()
    if draw < 0.42:
        return text[:1].lower() + text[1:]
    if draw < 0.46:
        return text.upper()
    if draw < 0.50:
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    if draw < 0.56:
        words = text.split(" ")
        at = chance.randrange(len(words))
        return " ".join([*words[:at], words[at].capitalize(), *words[at + 1 :]])
    return text


def _repunctuate(text: str, chance: random.Random) -> str:
    bare, end = text.rstrip(" ?.!"), text[len(text.rstrip(" ?.!")) :]
    draw = chance.random()
    if draw < 0.3:
        return bare
    if draw < 0.38:
        return f"{bare} {end.strip() or '?'}"
    if draw < 0.42:
        return f"{bare}??"
    return f"{bare}?" if draw < 0.45 else text


def _respace(text: str, chance: random.Random) -> str:
    words = text.split(" ")
    at = chance.randrange(len(words))
    return " ".join([*words[: at + 1], "", *words[at + 1 :]]) if len(words) > 1 else f" {text}"
