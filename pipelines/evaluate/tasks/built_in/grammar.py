"""Grammatical minimal pairs, made by rule: two sentences that differ in one point, of which one is grammatical.

The paradigm is that of BLiMP (Warstadt et al. 2020, https://arxiv.org/abs/1912.00582): a model is right if it gives
the grammatical sentence the larger probability. The sentences are Triptych's own, of common words, and both numbers and
both genders come equally often, so that no preference for one form pays.
"""

import random
from collections.abc import Callable

from pipelines.evaluate.tasks.items import EvaluationTask, Item

PAIRS = 200
_NOUNS = {
    "boy": "boys", "girl": "girls", "dog": "dogs", "cat": "cats", "king": "kings", "teacher": "teachers",
    "doctor": "doctors", "farmer": "farmers", "bird": "birds", "horse": "horses", "friend": "friends",
    "driver": "drivers", "writer": "writers", "student": "students", "neighbor": "neighbors", "soldier": "soldiers",
}  # fmt: skip
_THINGS = {
    "book": "books", "house": "houses", "tree": "trees", "letter": "letters", "table": "tables", "river": "rivers",
    "city": "cities", "song": "songs", "picture": "pictures", "garden": "gardens", "stone": "stones", "road": "roads",
}  # fmt: skip
_VERBS = {
    "sleeps": "sleep", "sings": "sing", "runs": "run", "works": "work", "waits": "wait", "laughs": "laugh",
    "eats": "eat", "falls": "fall", "swims": "swim", "walks": "walk", "smiles": "smile", "plays": "play",
}  # fmt: skip
_WHEN = ["every day", "in the morning", "at night", "after dinner", "in the city", "near the river", "all the time"]
_PLACES = ["near", "behind", "beside", "with", "in front of"]
_SAW = ["saw", "liked", "found", "bought", "wanted", "lost", "painted", "knew"]
_HURT = ["hurt", "washed", "saw", "helped", "liked", "blamed", "taught", "praised"]
_SAID = ["said", "thought", "knew", "hoped", "believed"]
_MEN = ["John", "Peter", "The king", "The man", "The boy", "My father", "My brother", "Her son", "The prince"]
_WOMEN = ["Mary", "Anna", "The queen", "The woman", "The girl", "My mother", "My sister", "The princess", "The lady"]
_ADJECTIVES = ["old", "small", "happy", "young", "big", "tired", "rich", "famous"]
_VOWELS = ["apple", "egg", "island", "orange", "engine", "old man", "uncle", "army", "animal", "ocean"]
_CONSONANTS = ["book", "tree", "river", "country", "dog", "young man", "friend", "city", "language", "mountain"]
_PARTICIPLES = {
    "eaten": "eat", "written": "write", "seen": "see", "taken": "take", "given": "give", "known": "know",
    "broken": "break", "chosen": "choose", "forgotten": "forget", "driven": "drive",
}  # fmt: skip

Chance = random.Random
Pair = tuple[str, str]


def _agreement(chance: Chance) -> Pair:
    (one, many), (sings, sing) = chance.choice(list(_NOUNS.items())), chance.choice(list(_VERBS.items()))
    when = chance.choice(_WHEN)
    if chance.random() < 0.5:
        return f"The {one} {sings} {when}.", f"The {one} {sing} {when}."
    return f"The {many} {sing} {when}.", f"The {many} {sings} {when}."


def _attractor(chance: Chance) -> Pair:
    (one, many), (thing, things) = chance.choice(list(_NOUNS.items())), chance.choice(list(_THINGS.items()))
    place, adjective = chance.choice(_PLACES), chance.choice(_ADJECTIVES)
    if chance.random() < 0.5:
        return f"The {one} {place} the {things} is {adjective}.", f"The {one} {place} the {things} are {adjective}."
    return f"The {many} {place} the {thing} are {adjective}.", f"The {many} {place} the {thing} is {adjective}."


def _determiner(chance: Chance) -> Pair:
    thing, things = chance.choice(list(_THINGS.items()))
    begin = f"{chance.choice(_MEN + _WOMEN)} {chance.choice(_SAW)}"
    near, many = chance.choice([("this", "these"), ("that", "those")])
    if chance.random() < 0.5:
        return f"{begin} {near} {thing}.", f"{begin} {near} {things}."
    return f"{begin} {many} {things}.", f"{begin} {many} {thing}."


def _reflexive_gender(chance: Chance) -> Pair:
    verb, when = chance.choice(_HURT), chance.choice(_WHEN)
    name, own, other = chance.choice(
        [(chance.choice(_MEN), "himself", "herself"), (chance.choice(_WOMEN), "herself", "himself")]
    )
    return f"{name} {verb} {own} {when}.", f"{name} {verb} {other} {when}."


def _reflexive_number(chance: Chance) -> Pair:
    (one, many), verb, when = chance.choice(list(_NOUNS.items())), chance.choice(_HURT), chance.choice(_WHEN)
    own = chance.choice(["himself", "herself"])
    if chance.random() < 0.5:
        return f"The {one} {verb} {own} {when}.", f"The {one} {verb} themselves {when}."
    return f"The {many} {verb} themselves {when}.", f"The {many} {verb} {own} {when}."


def _binding(chance: Chance) -> Pair:
    # Principle A: the reflexive is bound in its own clause, not by the subject of the outer one.
    man, woman = chance.choice(_MEN), chance.choice(_WOMEN)
    said, verb = chance.choice(_SAID), chance.choice(_HURT)
    outer, inner, own, other = chance.choice([(man, woman, "herself", "himself"), (woman, man, "himself", "herself")])
    inner = inner[0].lower() + inner[1:] if inner.startswith(("The", "My", "Her", "His")) else inner
    return f"{outer} {said} that {inner} {verb} {own}.", f"{outer} {said} that {inner} {verb} {other}."


def _negative_polarity(chance: Chance) -> Pair:
    many, (_, verb) = chance.choice(list(_NOUNS.values())), chance.choice(list(_VERBS.items()))
    when = chance.choice(_WHEN)
    form = chance.randrange(3)
    if form == 0:
        return f"No {many} ever {verb} {when}.", f"Some {many} ever {verb} {when}."
    if form == 1:
        return f"The {many} do not {verb} {when} anymore.", f"The {many} do really {verb} {when} anymore."
    things = chance.choice(list(_THINGS.values()))
    return f"Few {many} have any {things}.", f"Many {many} have any {things}."


def _verb_form(chance: Chance) -> Pair:
    one, (sings, sing), when = chance.choice(list(_NOUNS)), chance.choice(list(_VERBS.items())), chance.choice(_WHEN)
    if chance.random() < 0.5:
        modal = chance.choice(["can", "will", "must", "should"])
        return f"The {one} {modal} {sing} {when}.", f"The {one} {modal} {sings} {when}."
    (done, do), thing = chance.choice(list(_PARTICIPLES.items())), chance.choice(list(_THINGS))
    return f"The {one} has {done} the {thing}.", f"The {one} has {do} the {thing}."


def _article(chance: Chance) -> Pair:
    begin = f"{chance.choice(_MEN + _WOMEN)} {chance.choice(_SAW)}"
    if chance.random() < 0.5:
        noun = chance.choice(_VOWELS)
        return f"{begin} an {noun}.", f"{begin} a {noun}."
    noun = chance.choice(_CONSONANTS)
    return f"{begin} a {noun}.", f"{begin} an {noun}."


def _order(chance: Chance) -> Pair:
    one, thing, adjective = chance.choice(list(_NOUNS)), chance.choice(list(_THINGS)), chance.choice(_ADJECTIVES)
    saw, form = chance.choice(_SAW), chance.randrange(3)
    if form == 0:
        return f"The {adjective} {one} {saw} the {thing}.", f"The {one} {adjective} {saw} the {thing}."
    if form == 1:
        return f"The {one} {saw} the {adjective} {thing}.", f"The {one} {saw} {adjective} the {thing}."
    _, sing = chance.choice(list(_VERBS.items()))
    word = chance.choice(["Where", "When", "Why"])
    return f"{word} did the {one} {sing}?", f"{word} the {one} did {sing}?"


PHENOMENA: dict[str, Callable[[Chance], Pair]] = {
    "subject_verb_agreement": _agreement,
    "agreement_past_a_distractor": _attractor,
    "determiner_noun_agreement": _determiner,
    "reflexive_gender": _reflexive_gender,
    "reflexive_number": _reflexive_number,
    "binding": _binding,
    "negative_polarity": _negative_polarity,
    "verb_form": _verb_form,
    "article": _article,
    "word_order": _order,
}


def minimal_pairs(pairs: int = PAIRS) -> EvaluationTask:
    """Makes the task: `pairs` different pairs of each phenomenon, always the same ones."""
    items = []
    for name, make in PHENOMENA.items():
        chance, seen = random.Random(f"minimal pairs {name}"), dict[Pair, None]()
        while len(seen) < pairs:
            seen[make(chance)] = None
        items += [Item(f"{name}-{n}", "", pair, group=name) for n, pair in enumerate(seen)]
    return EvaluationTask("minimal_pairs", "Grammatical minimal pairs", "accuracy", items)
