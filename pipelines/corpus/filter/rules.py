"""Filters documents by quality rules. A rule is a bound on a signal; a document exactly at a bound is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError, first_line
from cluster.recipe.corpus import C4, Corpus, FineWeb, GopherQuality, GopherRepetition, Rules
from pipelines.corpus.filter.ngrams import DUPLICATE, TOP
from pipelines.corpus.filter.signals import Signals

TOO_FEW_WORDS = "too few words"
WORD_LENGTH = "mean word length"
SYMBOLS = "too many symbols"
LETTERS = "too few words with a letter"
REPEATED_LINES = "repeated lines"
LANGUAGE = "another language"
QUALITY = "quality classifier"
# Signal that the rule `LANGUAGE` bounds: probability that a document is in one of the recipe's languages.
WANTED_LANGUAGE = "wanted_language"


@dataclass(frozen=True)
class Bound:
    """A rule that drops documents whose signal is below `least` or above `most`, for `reason`.

    Attributes:
        key: the key of the recipe that governs the bounds; empty for a rule that applies without any set.
    """

    reason: str
    signal: str
    least: float = -np.inf
    most: float = np.inf
    key: str = ""

    @property
    def remedy(self) -> str:
        """Advice for a rule that drops too much."""
        if not self.key:
            return "name sets of rules in corpus.rules, in place of the default rules"
        now = " to ".join(f"{bound:g}" for bound in (self.least, self.most) if np.isfinite(bound))
        return f"change {self.key} (now {now})"


def bounds(
    rules: Rules | None, min_words: int, language_probability: float | None = None, min_score: float | None = None
) -> list[Bound]:
    """Lists the rules in the order of their application: words, language, the recipe's published sets, its classifier.

    The default without any set is a few of Gopher's rules that short texts pass too: its minimum of 50 words would drop
    every short dialogue.
    """
    first = [Bound(TOO_FEW_WORDS, "words", least=min_words, key="corpus.min_words")]
    if language_probability is not None:
        key = "corpus.languages or corpus.language_probability"
        first.append(Bound(LANGUAGE, WANTED_LANGUAGE, least=language_probability, key=key))
    key = "corpus.classifier.min_score"
    last = [] if min_score is None else [Bound(QUALITY, "quality_score", least=min_score, key=key)]
    if rules is None:
        return [
            *first,
            Bound(WORD_LENGTH, "mean_word_length", 3.0, 10.0),
            Bound(SYMBOLS, "symbols_per_word", most=0.1),
            Bound(LETTERS, "words_with_a_letter", least=0.8),
            Bound(REPEATED_LINES, "duplicate_lines", most=0.3),
            *last,
        ]
    return [
        *first,
        *(_gopher_quality(rules.gopher_quality) if rules.gopher_quality else []),
        *(_gopher_repetition(rules.gopher_repetition) if rules.gopher_repetition else []),
        *(_c4(rules.c4) if rules.c4 else []),
        *(_fineweb(rules.fineweb) if rules.fineweb else []),
        *last,
    ]


def recipe_bounds(corpus: Corpus) -> list[Bound]:
    """Lists the rules of a recipe, as `bounds` does."""
    probability = corpus.language_probability if corpus.languages else None
    return bounds(
        corpus.rules, corpus.min_words, probability, corpus.classifier.min_score if corpus.classifier else None
    )


def reasons_to_drop(signals: Signals, rules: Sequence[Bound]) -> list[str | None]:
    """Finds the reason of the first rule that each document breaks, None if it breaks none."""
    first = np.full(len(next(iter(signals.values()))), len(rules))
    for number, rule in reversed(list(enumerate(rules))):
        first[_broken(signals[rule.signal], rule)] = number
    names = [*(rule.reason for rule in rules), None]
    return [names[number] for number in first]


def wanted_language(
    languages: Sequence[str], probabilities: NDArray[np.float64], wanted: Sequence[str]
) -> NDArray[np.float64]:
    """Measures the signal `WANTED_LANGUAGE`: the language's probability, or 0 if the language is not a wanted one.

    Args:
        languages: most likely language of each document, ISO 639-1.
        probabilities: the probability of that language, (documents,).
        wanted: the recipe's languages.
    """
    return np.where(np.isin(languages, wanted), probabilities, 0.0)


def read_bad_words(rules: Rules | None) -> tuple[str, ...]:
    """Reads the words and phrases of `rules.c4.bad_words`, a line each, in lower case.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or has no words.
    """
    if rules is None or rules.c4 is None or rules.c4.bad_words is None:
        return ()
    file = rules.c4.bad_words
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus.rules.c4.bad_words: cannot read {file}: {first_line(error)}; fix the path") from error
    words = tuple(dict.fromkeys(word for line in lines if (word := line.strip().lower())))
    if not words:
        raise UserError(f"corpus.rules.c4.bad_words: {file} is empty; give a word a line, or leave the key out")
    return words


def _broken(signal: NDArray[np.float64], rule: Bound) -> NDArray[np.bool_]:
    return (signal < rule.least) | (signal > rule.most)


def _gopher_quality(given: GopherQuality) -> list[Bound]:
    name, key = "gopher quality", "corpus.rules.gopher_quality"
    lengths = given.min_mean_word_length, given.max_mean_word_length
    return [
        Bound(f"{name}: {TOO_FEW_WORDS}", "words", least=given.min_words, key=f"{key}.min_words"),
        Bound(f"{name}: too many words", "words", most=given.max_words, key=f"{key}.max_words"),
        Bound(f"{name}: {WORD_LENGTH}", "mean_word_length", *lengths, f"{key}.{{min,max}}_mean_word_length"),
        Bound(f"{name}: {SYMBOLS}", "symbols_per_word", most=given.symbols_per_word, key=f"{key}.symbols_per_word"),
        Bound(f"{name}: bullet lines", "bullet_lines", most=given.bullet_lines, key=f"{key}.bullet_lines"),
        Bound(f"{name}: ellipsis lines", "ellipsis_lines", most=given.ellipsis_lines, key=f"{key}.ellipsis_lines"),
        Bound(f"{name}: {LETTERS}", "words_with_a_letter", given.words_with_a_letter, key=f"{key}.words_with_a_letter"),
        Bound(f"{name}: too few stop words", "stop_words", least=given.stop_words, key=f"{key}.stop_words"),
    ]


def _gopher_repetition(given: GopherRepetition) -> list[Bound]:
    shares = (
        "duplicate_lines",
        "duplicate_paragraphs",
        "duplicate_line_characters",
        "duplicate_paragraph_characters",
    )
    most = [
        *((signal, signal, getattr(given, signal)) for signal in shares),
        *((f"top_{n}_gram", "top_n_grams", share) for n, share in zip(TOP, given.top_n_grams, strict=True)),
        *(
            (f"duplicate_{n}_gram", "duplicate_n_grams", share)
            for n, share in zip(DUPLICATE, given.duplicate_n_grams, strict=True)
        ),
    ]
    return [
        Bound(
            f"gopher repetition: {signal.replace('_', ' ')}",
            signal,
            most=share,
            key=f"corpus.rules.gopher_repetition.{field}",
        )
        for signal, field, share in most
    ]


def _c4(given: C4) -> list[Bound]:
    key = "corpus.rules.c4"
    found = [Bound("c4: too few sentences", "sentences", least=given.sentences, key=f"{key}.sentences")]
    if given.curly_brackets:
        found.append(Bound("c4: curly bracket", "curly_brackets", most=0, key=f"{key}.curly_brackets"))
    found.append(Bound("c4: lorem ipsum", "lorem_ipsum", most=0, key=key))
    if given.bad_words:
        found.append(Bound("c4: bad words", "bad_words", most=0, key=f"{key}.bad_words"))
    return found


def _fineweb(given: FineWeb) -> list[Bound]:
    name, key = "fineweb", "corpus.rules.fineweb"
    repeated = given.duplicate_line_characters
    return [
        Bound(
            f"{name}: too few punctuated lines",
            "punctuated_lines",
            given.punctuated_lines,
            key=f"{key}.punctuated_lines",
        ),
        Bound(f"{name}: short lines", "short_lines", most=given.short_lines, key=f"{key}.short_lines"),
        Bound(
            f"{name}: repeated lines",
            "left_duplicate_line_characters",
            most=repeated,
            key=f"{key}.duplicate_line_characters",
        ),
        Bound(
            f"{name}: newlines per word",
            "newlines_per_word",
            most=given.newlines_per_word,
            key=f"{key}.newlines_per_word",
        ),
    ]
