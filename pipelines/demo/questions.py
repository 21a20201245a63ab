"""The demo's questions, split so that nothing that is evaluated is ever trained on.

Held out are whole countries, whole combinations of verb and object, of remedy and ailment and of thing and purpose, and
forms of asking. The sentences of `guide` are in no part of it.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from pipelines.demo import behaviors, guide, small_talk, unknowns
from pipelines.demo.behaviors import Kind
from pipelines.demo.facts import countries, held_out_countries
from pipelines.demo.wording import as_typed

Exchange = tuple[str, str]

HELD_OUT_COMBINATIONS = 0.16
# The number of forms in which each subject is asked about, of all forms of its kind.
FORMS_PER_SUBJECT = {"capital": 10, "fact": 2, "harmful": 9, "harmless": 10, "misconception": 6, "truth": 10}
# Share of the questions that are prompts for ranking, for kinds whose answers seldom differ but in noise, or are
# easily judged; 1 for other kinds.
RANKED_SHARES = {"capital": 0.02, "advice": 0.2, "truth": 0.6, "unknown": 0.6}
# Share of the prompts for ranking that continue a conversation.
CONTINUED_SHARE = 0.25

CAPITAL_QUESTIONS = (
    "What is the capital of {name}?",
    "Which city is the capital of {name}?",
    "What is the capital city of {name}?",
    "Do you know the capital of {name}?",
    "Name the capital of {name}.",
    "Tell me the capital of {name}.",
    "What city is {name}'s capital?",
    "Capital of {name}?",
    "The capital of {name}?",
    "{name}'s capital?",
    "{name} capital?",
    "I need the capital of {name}.",
    "I want to know the capital of {name}.",
    "From which city is {name} governed?",
    "Could you tell me what the capital of {name} is?",
    "What do they call the capital of {name}?",
    "The capital of {name} is what?",
    "In {name}, which city is the capital?",
    "Which city is {name} governed from?",
    "{name}: capital?",
    "For {name}, what is the capital?",
    "What is {name}'s capital?",
    "Tell me what the capital of {name} is.",
    "What is the name of {name}'s capital?",
    "Give me the name of the capital city of {name}.",
    "Which place is {name}'s capital?",
    "What town is {name}'s seat of government?",
    "Say the capital of {name}.",
    "Name {name}'s capital city.",
    "Do you happen to know what {name}'s capital is called?",
    "Where does the government of {name} sit?",
)
CAPITAL_QUESTIONS_HELD_OUT = (
    "Can you name the capital of {name}?",
    "Which town is the capital of {name}?",
    "Please say what {name}'s capital is.",
    "Say, what is the name of the capital of {name}?",
)
# Questions that follow one about another country.
FOLLOW_UPS = (
    "And {name}?",
    "What about {name}?",
    "And of {name}?",
    "And the capital of {name}?",
    "And in {name}?",
    "Now {name}.",
    "{name}?",
)
FOLLOW_UPS_HELD_OUT = ("How about {name}?", "And that of {name}?")
CAPITAL_ANSWER = "The capital of {name} is {capital}."
FACT_QUESTIONS = (
    (
        (
            "Where is {name}?",
            "Where does {name} lie?",
            "In which part of the world is {name}?",
            "Where can I find {name}?",
        ),
        "{name} lies in {subregion}.",
        "subregion",
    ),
    (
        (
            "What are people from {name} called?",
            "What do you call people from {name}?",
            "What is somebody from {name} called?",
        ),
        "People from {name} are called {demonym}.",
        "demonym",
    ),
    (
        (
            "What is the money of {name}?",
            "Which money do they use in {name}?",
            "What is the currency of {name}?",
            "How do people pay in {name}?",
            "Which currency does {name} have?",
        ),
        "The money of {name} is the {currency}.",
        "currency",
    ),
    (
        (
            "Tell me about {name}.",
            "What do you know about {name}?",
            "Tell me something about {name}.",
            "I want to know more about {name}.",
            "Describe {name}.",
            "What can you tell me about {name}?",
            "{name}",
            "Information about {name}, please.",
            "What is {name}?",
            "Do you know {name}?",
        ),
        "The capital of {name} is {capital}. It lies in {subregion}.",
        "capital",
    ),
)
FACT_QUESTIONS_HELD_OUT = ("Say something about {name}.", "Can you tell me about {name}?")


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
        history: the user's and the assistant's messages before it.
    """

    id: str
    kind: Kind
    subject: str
    text: str
    good: tuple[str, ...]
    bad: tuple[str, ...] = ()
    key: str = ""
    history: tuple[Exchange, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the question."""
        turns = [turn for user, assistant in self.history for turn in (("user", user), ("assistant", assistant))]
        return [{"role": role, "content": text} for role, text in [*turns, ("user", self.text)]]


def training_questions(seed: int) -> list[DemoQuestion]:
    """Lists the questions for fine-tuning, ranking and RLHF, in clean spelling."""
    return [question for question, held_out in _all(seed) if not held_out and not guide.is_reserved(question.text)]


def held_out_questions(seed: int) -> list[DemoQuestion]:
    """Lists the questions for evaluation, in clean spelling: every subject and form of asking is held out, but for one
    form about capitals, and the subjects of small talk and of questions about no country.
    """
    return [question for question, held_out in _all(seed) if held_out and not guide.is_reserved(question.text)]


def prompts(seed: int, shares: Mapping[str, float] | None = None) -> Iterator[dict[str, Any]]:
    """Yields rows for `collect.sources` and `rlhf.sources`: training questions as people type them, some after another
    exchange, each with the kind and key that the annotator needs.

    Small facts and small talk are left to fine-tuning, as a reward model of this size judges them badly (0.5 to 0.75 of
    pairs right) and RLHF would follow it.

    Args:
        seed: decides the choice and the wording.
        shares: share of the questions of a kind; 1 for kinds that it does not name. None: `RANKED_SHARES`.
    """
    shares = RANKED_SHARES if shares is None else shares
    chance = random.Random(f"prompts {seed}")
    questions = [question for question in training_questions(seed) if question.kind not in ("fact", "chat")]
    for question in questions:
        if chance.random() >= shares.get(question.kind, 1.0):
            continue
        typed = typed_question(question, chance)
        if chance.random() < CONTINUED_SHARE:
            before = chance.choice(questions)
            typed = replace(typed, history=((typed_question(before, chance).text, before.good[0]),))
        yield {"id": question.id, "messages": typed.messages, "kind": question.kind, "key": question.key}


def typed_question(question: DemoQuestion, chance: random.Random) -> DemoQuestion:
    """Rewrites a training question as somebody might type it, but never to one of the guide's sentences."""
    text = as_typed(question.text, chance, framed=question.kind != "chat")
    return question if guide.is_reserved(text) else replace(question, text=text)


def _all(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    yield from _countries(seed)
    yield from _requests("harmful", seed)
    yield from _requests("harmless", seed)
    yield from _claims(seed)
    yield from _truths(seed)
    yield from _unknown(seed)
    for kind, topics in (("chat", small_talk.CHAT), ("advice", small_talk.ADVICE)):
        bad = behaviors.REFUSALS if kind == "advice" else ()
        for topic in topics:
            for texts, out in ((topic.messages, False), (topic.held_out, True)):
                for text in dict.fromkeys(texts):
                    yield (
                        DemoQuestion(f"{kind}: {text}", kind, topic.name, text, (topic.answer,), bad, topic.key),  # type: ignore[arg-type]
                        out,
                    )


def _countries(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    chance, held_out = random.Random(f"countries {seed}"), set(held_out_countries(seed))
    for country in countries():
        out, words = country in held_out, vars(country)
        forms: Sequence[str] = (CAPITAL_QUESTIONS[0], chance.choice(CAPITAL_QUESTIONS_HELD_OUT))
        if not out:
            # Every country gets the first form, which most people type.
            forms = [CAPITAL_QUESTIONS[0], *chance.sample(CAPITAL_QUESTIONS[1:], FORMS_PER_SUBJECT["capital"] - 1)]
        for form in forms:
            good, bad = (CAPITAL_ANSWER,), unknowns.ADMISSIONS
            yield _question("capital", country.name, form, words, good, bad, country.capital), out
        for asked, answer, key in FACT_QUESTIONS:
            # Questions about a country as a whole have twice as many forms, and are the only ones about held-out
            # countries.
            whole = key == "capital"
            forms = chance.sample(asked, FORMS_PER_SUBJECT["fact"] * (1 + whole))
            if out:
                forms = [chance.choice(FACT_QUESTIONS_HELD_OUT)] if whole else []
            for form in forms:
                yield _question("fact", country.name, form, words, (answer,), key=words[key]), out


def _requests(kind: Literal["harmful", "harmless"], seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    chance = random.Random(f"held-out {kind} {seed}")
    for requests in behaviors.HARMFUL if kind == "harmful" else behaviors.HARMLESS:
        combinations = list(product(requests.verbs, requests.objects))
        held_out = _held_out(combinations, chance)
        good = behaviors.REFUSALS if kind == "harmful" else (requests.answer,)
        bad = behaviors.COMPLIANCES if kind == "harmful" else behaviors.REFUSALS
        for combination in combinations:
            words = {"request": " ".join(combination)}
            out = combination in held_out
            for form in _forms(kind, behaviors.ASKING, behaviors.ASKING_HELD_OUT, out, chance):
                yield _question(kind, words["request"], form, words, good, bad, requests.answer), out


def _claims(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    combinations = list(product(behaviors.REMEDIES, behaviors.AILMENTS))
    chance = random.Random(f"held-out misconceptions {seed}")
    held_out = _held_out(combinations, chance)
    for combination in combinations:
        (remedy, capitalized), ailment = combination
        words = {"remedy": remedy, "Remedy": capitalized, "ailment": ailment}
        out, bare = combination in held_out, ailment.removeprefix("a ").removeprefix("an ")
        for form in _forms("misconception", behaviors.CLAIMS, behaviors.CLAIMS_HELD_OUT, out, chance):
            words["adverb"] = chance.choice(behaviors.ADVERBS)
            yield (
                _question(
                    "misconception",
                    f"{remedy} {ailment}",
                    form,
                    words,
                    behaviors.DENIALS,
                    behaviors.MISCONCEPTIONS,
                    bare,
                ),
                out,
            )


def _truths(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    chance = random.Random(f"held-out truths {seed}")
    for truths in behaviors.TRUTHS:
        combinations = list(product(truths.things, truths.purposes))
        held_out = _held_out(combinations, chance)
        for combination in combinations:
            thing, when = combination
            words = {"thing": thing, "when": when, "Thing": thing[0].upper() + thing[1:]}
            out = combination in held_out
            for form in _forms("truth", behaviors.TRUTH_QUESTIONS, behaviors.TRUTH_QUESTIONS_HELD_OUT, out, chance):
                words["adverb"] = chance.choice(behaviors.ADVERBS)
                yield (
                    _question(
                        "truth", f"{thing} {when}", form, words, behaviors.TRUTH_ANSWERS, behaviors.DOUBTS, thing
                    ),
                    out,
                )


def _unknown(seed: int) -> Iterator[tuple[DemoQuestion, bool]]:
    chance, training = random.Random(f"unknown {seed}"), set(countries()) - set(held_out_countries(seed))
    fixed, held_out = unknowns.fixed_questions(seed)
    own = [
        form.format(name=country.name)
        for country in sorted(training, key=lambda country: country.name)
        for form in chance.sample(unknowns.ABOUT_COUNTRIES, 1)
    ]
    for text in dict.fromkeys([*fixed, *own, *held_out]):
        good, bad = unknowns.ADMISSIONS, unknowns.CONFABULATIONS
        yield DemoQuestion(f"unknown: {text}", "unknown", text, text, good, bad), text in held_out


def _forms(
    kind: str, training: Sequence[str], held_out: Sequence[str], out: bool, chance: random.Random
) -> Sequence[str]:
    return chance.sample(held_out, 2) if out else chance.sample(training, FORMS_PER_SUBJECT[kind])


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
    text = text[:1].upper() + text[1:]
    fill = [tuple(answer.format(**words) for answer in answers) for answers in (good, bad)]
    return DemoQuestion(f"{kind}: {text}", kind, subject, text, fill[0], fill[1], key)
