import random
from collections import Counter

import pytest

from pipelines.demo.facts import countries
from pipelines.demo.wording import (
    OPENINGS,
    OPENINGS_HELD_OUT,
    as_typed,
    letters_of,
    with_typo,
    without_accents,
)

CLEAN = "What is the capital of São Tomé?"


def typed(count: int, **arguments: object) -> list[str]:
    chance = random.Random(3)
    return [as_typed(CLEAN, chance, **arguments) for _ in range(count)]  # type: ignore[arg-type]


def test_a_sentence_is_typed_in_many_ways_and_sometimes_as_it_is() -> None:
    found = Counter(typed(4_000))
    # Four standard deviations of a share of 0.25 are 0.027; some rewritings change nothing.
    assert found[CLEAN] / 4_000 > 0.22
    assert len(found) > 500
    shares = {
        "in lower case": sum(text == text.lower() for text in found.elements()),
        "without the article": sum(
            "capital of" in text.lower() and "the" not in text.lower() for text in found.elements()
        ),
        "without punctuation": sum(text[-1].isalpha() for text in found.elements()),
        "with two spaces": sum("  " in text for text in found.elements()),
        "contracted": sum("hat's" in text or "hats" in text for text in found.elements()),
        "without accents": sum("sao tome" in text.lower() for text in found.elements()),
        "after an opening": sum(text.startswith(OPENINGS) for text in found.elements()),
    }
    assert all(count > 100 for count in shares.values()), shares


def test_words_are_kept_but_for_articles_openings_contractions_and_one_typo() -> None:
    for text in typed(2_000, framed=False):
        known = set(letters_of(without_accents(CLEAN)).split()) | {"whats", "s"}
        strange = [word for word in letters_of(without_accents(text)).split() if word not in known]
        assert len(strange) <= 1, text


def test_held_out_openings_are_no_training_openings() -> None:
    assert not set(OPENINGS) & set(OPENINGS_HELD_OUT)


@pytest.mark.parametrize("text", ["is it on", "", "a b c 12345"])
def test_short_words_get_no_typo(text: str) -> None:
    assert with_typo(text, random.Random(0)) == text


def test_a_typo_changes_one_word_by_one_letter_and_keeps_its_first() -> None:
    chance = random.Random(1)
    for _ in range(500):
        word = with_typo("capital", chance)
        assert word[0] == "c"
        assert abs(len(word) - len("capital")) <= 1
        assert len(set(word) ^ set("capital")) <= 2


def test_no_typo_makes_an_insult_of_niger() -> None:
    chance = random.Random(1)
    assert not [text for _ in range(2_000) if "gg" in (text := with_typo("Niger", chance).lower())]


def test_accents_are_removed_from_every_name() -> None:
    plain = [without_accents(f"{country.name} {country.capital}") for country in countries()]
    assert sum(text.isascii() for text in plain) >= len(plain) - 1
