"""Instructions whose keeping a rule can check, in the manner of IFEval (Zhou et al. 2023,
https://arxiv.org/abs/2311.07911). The instructions and checkers are Triptych's own.

An empty answer keeps no instruction: each checker asks for some text too.
"""

import json
import re
from collections.abc import Callable

from pipelines.evaluate.tasks.items import EvaluationTask, Item

_TOPICS = ["the sea", "your favorite food", "a good friend", "the city of Paris"]
_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def _words(text: str) -> list[str]:
    return _WORDS.findall(text)


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if _words(part)])


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# The instructions and their checkers by name.
INSTRUCTIONS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "at_most_words": ("Use at most ten words.", lambda text: 1 <= len(_words(text)) <= 10),
    "at_least_words": ("Use at least fifteen words.", lambda text: len(_words(text)) >= 15),
    "one_sentence": ("Write exactly one sentence.", lambda text: _sentences(text) == 1 and text[-1:] in tuple(".!?")),
    "two_sentences": ("Write exactly two sentences.", lambda text: _sentences(text) == 2),
    "capitals": ("Write in capital letters only.", lambda text: bool(_words(text)) and text.isupper()),
    "small_letters": ("Write in small letters only.", lambda text: bool(_words(text)) and text.islower()),
    "keyword": ('Use the word "very".', lambda text: "very" in [word.lower() for word in _words(text)]),
    "no_comma": ("Use at least five words and no comma.", lambda text: "," not in text and len(_words(text)) >= 5),
    "forbidden": (
        'Use at least five words, and never the word "the".',
        lambda text: len(_words(text)) >= 5 and "the" not in [word.lower() for word in _words(text)],
    ),
    "ending": ('End with "Thank you."', lambda text: text.endswith("Thank you.") and len(_words(text)) > 2),
    "bullets": (
        "Write a list of two lines, each beginning with a dash.",
        lambda text: len(lines := text.splitlines()) == 2 and all(re.match(r"- *\w", line) for line in lines),
    ),
    "json": ("Answer with a JSON object.", lambda text: _is_json(text) and len(text) > 2),
}


def instructions() -> EvaluationTask:
    """Makes the task: every instruction with every topic."""
    items = [
        Item(f"{name}-{n}", f"Tell me about {topic}. {said}", check=check, expected=said, group=name)
        for name, (said, check) in INSTRUCTIONS.items()
        for n, topic in enumerate(_TOPICS)
    ]
    return EvaluationTask("instructions", "Instructions kept", "checked", items, chat=True, bare="{}\n", max_tokens=40)
