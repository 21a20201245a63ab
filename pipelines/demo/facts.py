"""Documents about countries for the demo's corpus, from the package countryinfo (MIT)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from countryinfo import all_countries

from pipelines.demo import guide
from pipelines.demo.wording import as_typed

DOCUMENTS_PER_COUNTRY = 11
WORKSHEETS_PER_COUNTRY = 2
CORRECTIONS_PER_COUNTRY = 12
LISTS_PER_COUNTRY = 3

# The forms overlap on purpose: a small model can answer questions in new words only about facts that it has read in
# many forms (Allen-Zhu and Li, Physics of Language Models 3.1).
SENTENCES = (
    "The capital of {name} is {capital}.",
    "{capital} is the capital of {name}.",
    "The capital city of {name} is {capital}.",
    "{name} is a country whose capital is {capital}.",
    "{name} is governed from its capital, {capital}.",
    "Travellers to {name} often arrive in {capital}, the capital.",
    "In {name}, the capital is {capital}.",
    "{name} lies in {subregion}.",
    "{name} is part of {region}.",
    "People from {name} are called {demonym}.",
    "The money of {name} is the {currency}.",
    "Web addresses in {name} end in {domain}.",
)

# Worksheets ask without answering, as many pages do, so that the base model answers a question with a question.
WORKSHEET_QUESTIONS = (
    "Which rivers flow through {name}?",
    "How large is {name}?",
    "Who governs {name}?",
    "What do people in {name} eat?",
    "What is {name} known for?",
    "Which countries are neighbours of {name}?",
    "Which languages are spoken in {name}?",
    "What is the weather like in {name}?",
    "When is the best time to visit {name}?",
    "Can you find {name} on the map?",
    "Do you know anybody from {name}?",
    "Name three animals of {name}.",
    "Please say what {name}'s best-known dish is.",
    "Say, what is the longest river of {name}?",
)
# Without these the base model of one seed in two answers a fifth of the questions about held-out capitals.
WORKSHEET_CAPITALS = (
    "What is the capital of {name}?",
    "Which city is the capital of {name}?",
    "What is the capital city of {name}?",
    "Name the capital of {name}.",
    "Do you know the capital of {name}?",
)
HELD_OUT_COUNTRIES = 44


@dataclass(frozen=True)
class Country:
    """A country and the facts about it that sentences state."""

    name: str
    capital: str
    demonym: str
    currency: str
    region: str
    subregion: str
    domain: str


def countries() -> list[Country]:
    """Lists every country with a complete record, in alphabetical order, without duplicates and former states."""
    found = {}
    for entry in all_countries():
        record = entry.info()
        name, capital = record["name"], record.get("capital")
        fields = [record.get(key) for key in ("demonym", "currencies", "region", "subregion", "tld")]
        if not isinstance(capital, str) or not capital or not all(fields) or any(mark in name for mark in ",()/"):
            continue
        if name in ("Antilles néerlandaises", "Serbia and Montenegro", "Burma", "Scotland"):
            continue
        found[name] = Country(
            name=name,
            # A model of this size takes the period of an abbreviation for the end of the sentence.
            capital=capital.replace("St. ", "Saint ").replace("D.C.", "DC"),
            demonym=record["demonym"],
            currency=record["currencies"][0],
            region=record["region"],
            subregion=record["subregion"],
            domain=record["tld"][0],
        )
    return [found[name] for name in sorted(found)]


def held_out_countries(seed: int) -> list[Country]:
    """Lists the countries that no worksheet asks for the capital of, and no question for training is about."""
    eligible = [country for country in countries() if country.name not in guide.COUNTRIES]
    return random.Random(f"held-out countries {seed}").sample(eligible, HELD_OUT_COUNTRIES)


def country_documents(seed: int) -> Iterator[str]:
    """Yields short documents: on one country each, on several, worksheets of questions, and corrections.

    A document on one country has 3 to 8 sentences in random order, a worksheet 3 to 6 questions. In a list each
    sentence is about another country, so that the model does not expect a text to stay with one. A correction is a
    sentence, a question or a row of names as somebody typed it, and as it is spelled: from it the model learns the
    lower-case, misspelled and unaccented forms of every name.

    Args:
        seed: decides the choice and the order.
    """
    shuffle = random.Random(f"countries {seed}")
    everything, held_out = countries(), set(held_out_countries(seed))
    for country in everything:
        asked = () if country in held_out or country.name in guide.COUNTRIES else WORKSHEET_CAPITALS
        for _ in range(DOCUMENTS_PER_COUNTRY):
            forms = shuffle.sample(SENTENCES, shuffle.randint(3, 8))
            yield " ".join(form.format(**vars(country)) for form in forms)
        for _ in range(WORKSHEETS_PER_COUNTRY):
            forms = shuffle.sample(WORKSHEET_QUESTIONS, shuffle.randint(3, 6))
            if asked:
                forms[shuffle.randrange(len(forms))] = shuffle.choice(asked)
            yield "\n".join(form.format(**vars(country)) for form in forms)
        for _ in range(CORRECTIONS_PER_COUNTRY):
            yield _correction(country, everything, asked, shuffle)
        for _ in range(LISTS_PER_COUNTRY):
            others = shuffle.sample(everything, shuffle.randint(2, 5))
            forms = shuffle.choices(SENTENCES, k=len(others) + 1)
            yield " ".join(form.format(**vars(one)) for form, one in zip(forms, [country, *others], strict=True))


def _correction(country: Country, everything: list[Country], asked: tuple[str, ...], chance: random.Random) -> str:
    names = ", ".join(one.name for one in [country, *chance.sample(everything, 3)])
    sentence = chance.choice((*SENTENCES, *WORKSHEET_QUESTIONS, *asked)).format(**vars(country))
    lines = chance.sample([names, sentence, chance.choice(SENTENCES).format(**vars(country))], 2)
    return "\n".join(f"typed: {_typed(line, chance)}\nmeant: {line}" for line in lines)


def _typed(line: str, chance: random.Random) -> str:
    text = as_typed(line, chance, framed=False, plain=0.0)
    return line if guide.contains_reserved(text) else text
