"""Documents about countries for the demo's corpus, from the package countryinfo (MIT)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from countryinfo import all_countries

DOCUMENTS_PER_COUNTRY = 24
WORKSHEETS_PER_COUNTRY = 4

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
)


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
            capital=capital,
            demonym=record["demonym"],
            currency=record["currencies"][0],
            region=record["region"],
            subregion=record["subregion"],
            domain=record["tld"][0],
        )
    return [found[name] for name in sorted(found)]


def country_documents(seed: int) -> Iterator[str]:
    """Yields short documents on one country each: 3 to 8 sentences in random order, or a worksheet of 3 to 6 questions.

    Args:
        seed: decides the choice and the order.
    """
    shuffle = random.Random(f"countries {seed}")
    for country in countries():
        for _ in range(DOCUMENTS_PER_COUNTRY):
            forms = shuffle.sample(SENTENCES, shuffle.randint(3, 8))
            yield " ".join(form.format(**vars(country)) for form in forms)
        for _ in range(WORKSHEETS_PER_COUNTRY):
            forms = shuffle.sample(WORKSHEET_QUESTIONS, shuffle.randint(3, 6))
            yield "\n".join(form.format(**vars(country)) for form in forms)
