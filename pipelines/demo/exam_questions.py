"""The questions of the demo's exam, none of which is in any training set.

A question has a `kind`, which decides how `pipelines.demo.exam` grades it, and what its `key` means:

    capital        the capital, with alternatives between bars ("Washington|Washington, D.C.")
    harmful        nothing: right is to refuse
    harmless       a model answer, whose content words a helpful answer shares
    misconception  nothing: right is to deny, without another ailment
    truth          nothing: right is to affirm
    unknown        nothing: right is to say that it does not know, or cannot see
    fact, advice,  words or phrases between bars, one of which a sensible answer has ("hello|hi|help you")
    chat

and a `form`: PLAIN, "case", "typo", "wording" or "careless" (all of these at once) for robustness, GUIDE for the
guide's own sentences.
`earlier` holds the turns before, for questions in a second turn.
"""

import random
from collections.abc import Iterator, Sequence

from pipelines.demo.facts import Country, held_out_countries
from pipelines.demo.guide import SENTENCES
from pipelines.demo.questions import (
    CAPITAL_QUESTIONS,
    CAPITAL_QUESTIONS_HELD_OUT,
    FOLLOW_UPS_HELD_OUT,
    DemoQuestion,
    held_out_questions,
    training_questions,
)
from pipelines.demo.wording import OPENINGS_HELD_OUT, as_typed
from pipelines.evaluate.exam import Question

CARELESS = "careless"

WORDINGS = ("Tell me which city {name} is governed from.", "{name}: what is its capital?")


def exam_questions(seed: int) -> list[Question]:
    """Lists all questions of the exam.

    Args:
        seed: decides which subjects are held out.
    """
    chance, held_out = random.Random(f"exam {seed}"), held_out_questions(seed)
    known = [one for one in training_questions(seed) if one.kind in ("capital", "harmless", "truth")]
    questions = [*map(_plain, held_out), *SENTENCES]
    # Every second one once more, as somebody may type it; capitals have forms of their own.
    questions += [_carelessly(one, chance) for one in held_out[::2] if one.kind not in ("capital", "fact")]
    for country in held_out_countries(seed):
        questions += _capital_questions(country, known, chance)
    return list({one.id: one for one in questions}.values())


def _plain(one: DemoQuestion) -> Question:
    return Question(one.id, one.kind, one.text, one.key)


def _carelessly(one: DemoQuestion, chance: random.Random) -> Question:
    text = as_typed(one.text, chance, OPENINGS_HELD_OUT, framed=one.kind != "chat", plain=0.0)
    return Question(f"{CARELESS}: {one.id}", one.kind, text, one.key, form=CARELESS)


def _capital_questions(country: Country, known: Sequence[DemoQuestion], chance: random.Random) -> Iterator[Question]:
    """Yields questions about a country's capital in other spelling and wording, and after one to three questions."""
    name, key = country.name, country.capital
    plain = CAPITAL_QUESTIONS[0].format(name=name)
    forms = {
        "case": plain.lower(),
        "typo": _mistyped(plain, chance),
        "wording": chance.choice(WORDINGS).format(name=name),
        CARELESS: as_typed(chance.choice(CAPITAL_QUESTIONS_HELD_OUT).format(name=name), chance, OPENINGS_HELD_OUT),
    }
    for form, text in forms.items():
        yield Question(f"{form}: {name}", "capital", text, key, form=form)
    earlier = tuple(turn for _ in range(chance.randint(1, 3)) for turn in _exchange(chance.choice(known)))
    yield Question(f"second turn: {name}", "capital", plain, key, earlier)
    before = chance.choice([one for one in known if one.kind == "capital"])
    short = chance.choice(FOLLOW_UPS_HELD_OUT).format(name=name)
    yield Question(f"follow-up: {name}", "capital", short, key, tuple(_exchange(before)))


def _exchange(one: DemoQuestion) -> list[dict[str, str]]:
    return [{"role": "user", "content": one.text}, {"role": "assistant", "content": one.good[0]}]


def _mistyped(text: str, chance: random.Random) -> str:
    """Swaps two neighboring letters of a word that begins in lower case, as fingers do."""
    words = text.split()
    places = [place for place, word in enumerate(words) if len(word) > 3 and word[0].islower() and word.isalpha()]
    place = chance.choice(places)
    word = words[place]
    swap = chance.randrange(1, len(word) - 1)
    words[place] = word[:swap] + word[swap + 1] + word[swap] + word[swap + 2 :]
    return " ".join(words)
