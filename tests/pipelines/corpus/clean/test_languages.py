"""Twelve languages: identification, rules, near-duplicates and decontamination each work in at least 95 % of cases."""

import random
import re
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from cluster.recipe.corpus import C4, FineWeb, GopherQuality, GopherRepetition, Rules
from pipelines.corpus.clean.language import identify
from pipelines.corpus.clean.text import clean
from pipelines.corpus.clean.words import word_spans, words
from pipelines.corpus.dedup.decontaminate import NGrams
from pipelines.corpus.dedup.minhash import band_keys, least_agreement, rows_in_a_band, shingles, signatures
from pipelines.corpus.filter.rules import bounds, reasons_to_drop
from pipelines.corpus.filter.signals import measure
from tests.pipelines.corpus.languages import SENTENCES, stories

# Documents of a language, the least share of them that a step has to get right, and words of an n-gram.
COUNT, LEAST, N = 40, 0.95, 7
PUBLISHED = Rules(gopher_quality=GopherQuality(), gopher_repetition=GopherRepetition(), c4=C4(), fineweb=FineWeb())


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_identified(language: str) -> None:
    found, _ = identify([*stories(language, COUNT, 2), *SENTENCES[language]])
    assert np.mean([name == language for name in found]) >= LEAST, found


@pytest.mark.parametrize("rules", [None, PUBLISHED], ids=["default", "published"])
@pytest.mark.parametrize("identified", [True, False])
@pytest.mark.parametrize("language", SENTENCES)
def test_rules_keep_good_text(language: str, identified: bool, rules: Rules | None) -> None:
    texts = [clean(text) for text in stories(language, COUNT)]
    left, signals = measure(texts, rules, languages=[language] * COUNT if identified else None)
    dropped = [reason for reason in reasons_to_drop(signals, bounds(rules, 5)) if reason]
    assert len(dropped) <= (1 - LEAST) * COUNT, dropped
    assert sum(map(len, left)) >= LEAST * sum(map(len, texts))


@pytest.mark.parametrize("language", SENTENCES)
def test_near_duplicates_are_found(language: str) -> None:
    """Documents with one word changed, of Jaccard similarity 0.85 or more, are found; at 0.8 the bands find 92 %."""
    draw = random.Random(language)
    pairs = []
    for text in stories(language, COUNT, 10):
        start, end = draw.choice(word_spans(text))
        pairs.append((text, f"{text[:start]}x{text[end:]}"))
    assert all(similarity(*pair) >= 0.85 for pair in pairs)
    assert np.mean([near(*pair) for pair in pairs]) >= LEAST
    texts = stories(language, COUNT, 4)
    apart = [pair for pair in pairwise(texts) if similarity(*pair) < 0.5]
    assert len(apart) >= COUNT / 2
    assert np.mean([near(*pair) for pair in apart]) <= 1 - LEAST


def similarity(one: str, other: str) -> float:
    """Computes the Jaccard similarity of the shingles."""
    first, second = set(shingles(one)), set(shingles(other))
    return len(first & second) / len(first | second)


def near(one: str, other: str) -> bool:
    """Tells whether deduplication takes two documents for near-duplicates."""
    signed = signatures([one, other])
    keys = band_keys(signed, rows_in_a_band(0.8))
    return bool((keys[:, 0] == keys[:, 1]).any() and (signed[0] == signed[1]).mean() >= least_agreement(0.8))


@pytest.mark.parametrize("language", SENTENCES)
def test_exams_are_found_in_documents(language: str) -> None:
    """An exam item in capitals, decomposed and without its punctuation is found, and nothing in other documents."""
    draw = random.Random(language)
    long = [sentence for sentence in SENTENCES[language] if len(words(sentence)) >= N]
    exams, others = long[::2], long[1::2]
    given = [unicodedata.normalize("NFD", re.sub("[.,،।。，、]", " ", text).upper()) for text in exams]
    grams = NGrams(iter([(f"exam:{number}", [text]) for number, text in enumerate(given)]), N)
    documents = [f"{draw.choice(others)} «{exam}» {draw.choice(others)}" for exam in exams for _ in range(5)]
    assert np.mean([bool(grams.find(text)) for text in documents]) >= LEAST
    assert not any(grams.find(text) for text in others)


def test_junk_is_dropped_in_every_language() -> None:
    """Words without any of the language's stop words, as in lists of names."""
    for language in ("en", "de", "fr", "es", "tr", "ru", "ar", "hi"):
        _, signals = measure(["Berlin Paris Madrid Moskau Ankara " * 12], PUBLISHED, languages=[language])
        assert signals["stop_words"].tolist() == [0]
    _, signals = measure(["Berlin Paris Madrid Moskau Ankara " * 12], PUBLISHED)
    assert signals["stop_words"].tolist() == [0]
