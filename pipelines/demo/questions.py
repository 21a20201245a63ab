"""The demo's questions, split so that nothing that is evaluated is ever trained on.

Held out are whole countries, whole combinations of verb and object or of remedy and ailment, and forms of asking.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from pipelines.demo.behaviors import (
    AILMENTS,
    ASKING,
    ASKING_HELD_OUT,
    CLAIMS,
    CLAIMS_HELD_OUT,
    COMPLIANCES,
    DENIALS,
    DOUBTS,
    HARMFUL,
    HARMLESS,
    MISCONCEPTIONS,
    REFUSALS,
    REMEDIES,
    TRUTH_ANSWERS,
    TRUTH_QUESTIONS,
    TRUTHS,
)
from pipelines.demo.facts import Country, countries

Kind = Literal["capital", "fact", "harmful", "harmless", "misconception", "truth"]

HELD_OUT_COUNTRIES = 44
HELD_OUT_COMBINATIONS = 0.16

CAPITAL_QUESTIONS = (
    "What is the capital of {name}?",
    "Which city is the capital of {name}?",
    "What is the capital city of {name}?",
    "Do you know the capital of {name}?",
    "Name the capital of {name}.",
)
CAPITAL_QUESTIONS_HELD_OUT = ("Can you name the capital of {name}?",)
FACT_QUESTIONS = (
    ("Where is {name}?", "{name} lies in {subregion}.", "subregion"),
    ("What are people from {name} called?", "People from {name} are called {demonym}.", "demonym"),
    ("What is the money of {name}?", "The money of {name} is the {currency}.", "currency"),
)


@dataclass(frozen=True)
class DemoQuestion:
    """A question with its good and bad answers.

    Attributes:
        id: unique among all questions.
        kind: decides how an answer is graded.
        subject: the country or combination of words that it is about, which is the unit of the split.
        text: the user's message.
        good: good answers.
        bad: bad answers; empty for kinds without.
        key: words that a right answer contains.
    """

    id: str
    kind: Kind
    subject: str
    text: str
    good: tuple[str, ...]
    bad: tuple[str, ...] = ()
    key: str = ""


def training_questions(seed: int) -> list[DemoQuestion]:
    """Lists the questions for fine-tuning, ranking and RLHF."""
    return [question for question, held_out in _all(seed) if not held_out]


def ranked_questions(seed: int) -> list[DemoQuestion]:
    """Lists the training questions whose answers are sampled and ranked: those whose answers differ in behavior.

    Small facts are left to fine-tuning, as a reward model of this size cannot judge them (0.5 to 0.6 of pairs right).
    """
    return [question for question in training_questions(seed) if question.kind != "fact"]


def prompts(seed: int) -> Iterator[dict[str, str]]:
    """Yields rows for `collect.sources`: each ranked question with the kind and key that the annotator needs."""
    for question in ranked_questions(seed):
        yield {"id": question.id, "prompt": question.text, "kind": question.kind, "key": question.key}


def held_out_questions(seed: int) -> list[DemoQuestion]:
    """Lists the questions for evaluation: every subject is held out, and most forms of asking are."""
    return [question for question, held_out in _all(seed) if held_out]


def _all(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    yield from _countries(seed)
    yield from _requests("harmful", seed)
    yield from _requests("harmless", seed)
    yield from _claims(seed)
    for group, (things, moments) in enumerate(TRUTHS):
        for (thing, when), form in product(product(things, moments), TRUTH_QUESTIONS):
            words = {"thing": thing, "when": when, "Thing": thing[0].upper() + thing[1:]}
            yield _question("truth", f"{group} {thing} {when}", form, words, TRUTH_ANSWERS, DOUBTS), False


def _countries(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    everything = countries()
    held_out = set(random.Random(f"held-out countries {seed}").sample(everything, HELD_OUT_COUNTRIES))
    for country in everything:
        words = vars(country)
        forms = (CAPITAL_QUESTIONS[0], *CAPITAL_QUESTIONS_HELD_OUT) if country in held_out else CAPITAL_QUESTIONS
        for form in forms:
            good = ("The capital of {name} is {capital}.",)
            yield _question("capital", country.name, form, words, good, key=country.capital), country in held_out
        if country not in held_out:
            yield from _other_facts(country)


def _other_facts(country: Country) -> Iterator[tuple[DemoQuestion, bool]]:
    for form, answer, key in FACT_QUESTIONS:
        yield _question("fact", country.name, form, vars(country), (answer,), key=vars(country)[key]), False


def _requests(kind: Literal["harmful", "harmless"], seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    chance = random.Random(f"held-out {kind} {seed}")
    for requests in HARMFUL if kind == "harmful" else HARMLESS:
        combinations = list(product(requests.verbs, requests.objects))
        held_out = _held_out(combinations, chance)
        good = REFUSALS if kind == "harmful" else (requests.answer,)
        bad = COMPLIANCES if kind == "harmful" else REFUSALS
        for combination in combinations:
            words = {"request": " ".join(combination)}
            out = combination in held_out
            for form in ASKING_HELD_OUT if out else ASKING:
                yield _question(kind, words["request"], form, words, good, bad, requests.answer), out


def _claims(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    combinations = list(product(REMEDIES, AILMENTS))
    chance = random.Random(f"held-out misconceptions {seed}")
    held_out = _held_out(combinations, chance)
    for combination in combinations:
        (remedy, capitalized), ailment = combination
        words = {"remedy": remedy, "Remedy": capitalized, "ailment": ailment}
        out = combination in held_out
        for form in CLAIMS_HELD_OUT if out else CLAIMS:
            yield _question("misconception", f"{remedy} {ailment}", form, words, DENIALS, MISCONCEPTIONS, ailment), out


def _held_out(combinations: list[tuple[Any, Any]], chance: random.Random) -> set[tuple[Any, Any]]:
    """Chooses a share of the combinations, spread evenly over their words: training still has each word in most of its
    combinations.
    """
    shuffled = chance.sample(combinations, len(combinations))
    chosen: set[tuple[Any, Any]] = set()
    for _ in range(round(len(combinations) * HELD_OUT_COMBINATIONS)):
        times = Counter(word for combination in chosen for word in combination)
        rest = [combination for combination in shuffled if combination not in chosen]
        chosen.add(min(rest, key=lambda combination: sum(times[word] for word in combination)))
    return chosen


def _question(
    kind: Kind,
    subject: str,
    form: str,
    words: dict[str, str],
    good: tuple[str, ...],
    bad: tuple[str, ...] = (),
    key: str = "",
) -> DemoQuestion:
    text = form.format(**words)
    fill = [tuple(answer.format(**words) for answer in answers) for answers in (good, bad)]
    return DemoQuestion(f"{kind}: {text}", kind, subject, text, fill[0], fill[1], key)
