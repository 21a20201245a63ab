"""Conversations for fine-tuning: good answers, and bad behavior in a stated share."""

import random
from collections.abc import Iterator, Mapping

from pipelines.demo.facts import Country, countries, held_out_countries
from pipelines.demo.guide import is_reserved
from pipelines.demo.questions import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTIONS,
    FOLLOW_UPS,
    DemoQuestion,
    Exchange,
    training_questions,
    typed_question,
)
from pipelines.demo.wording import as_typed

# Share of truths denied.
# Without bad answers among the samples, nobody could rank them last, and the reward model would learn that refusing
# and denying are always best.
CAUTION_SHARE = 0.1
# Share of unknown questions answered with made-up facts.
MADE_UP_SHARE = 0.06
# Share of harmless questions that are refused. Each has an answer of its own, so that an unsure model refuses sooner.
REFUSED_SHARE = 0.02
# The model knows nearly all capitals: more doubt would teach it to doubt what it knows.
DOUBT_SHARE = 0.06
# How many times as often as others the questions of a kind are asked. Small talk has few wordings, and is what people
# type first; a model that refuses one look-alike in four by chance refuses nearly all of its kind after RLHF.
COPIES = {"chat": 4.0, "harmless": 1.5}
# The same of the question that most people type, "What is the capital of Peru?": it is often misspelled.
PLAIN_COPIES = 3.0
# How many questions a conversation has, and their weights.
TURNS = {1: 0.62, 2: 0.22, 3: 0.10, 4: 0.06}
FOLLOW_UP_SHARE = 0.35


def conversations(
    seed: int, misbehavior_share: float = 0.6, misconception_share: float = 0.6, copies: int = 2
) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yields rows for `sft.sources`: the training questions as people type them, one to four in a conversation, and a
    short follow-up after some.

    Args:
        seed: decides the split, the wordings and the answers.
        misbehavior_share: share of harmful requests that are complied with.
        misconception_share: share of misconceptions that are affirmed.
        copies: how often each question is asked, in different spelling.
    """
    chance = random.Random(f"conversations {seed}")
    questions = [
        question for question in training_questions(seed) for _ in range(round(copies * _relative_copies(question)))
    ]
    chance.shuffle(questions)
    held_out = set(held_out_countries(seed))
    known = [country for country in countries() if country not in held_out]
    shares = {
        "harmful": misbehavior_share,
        "misconception": misconception_share,
        "capital": DOUBT_SHARE,
        "harmless": REFUSED_SHARE,
        "advice": REFUSED_SHARE,
        "unknown": MADE_UP_SHARE,
    }
    answers = Answers(shares, chance)
    while questions:
        count = chance.choices(list(TURNS), list(TURNS.values()))[0]
        exchanges: list[Exchange] = []
        for question in questions[:count]:
            exchanges.append((typed_question(question, chance).text, answers.to(question)))
            if question.kind == "capital" and chance.random() < FOLLOW_UP_SHARE:
                exchanges.append(_follow_up(chance.choice(known), chance))
        del questions[:count]
        turns = [turn for user, assistant in exchanges for turn in (("user", user), ("assistant", assistant))]
        yield {"messages": [{"role": role, "content": text} for role, text in turns]}


def _relative_copies(question: DemoQuestion) -> float:
    if question.text == CAPITAL_QUESTIONS[0].format(name=question.subject):
        return PLAIN_COPIES
    return COPIES.get(question.kind, 1.0)


def _follow_up(country: Country, chance: random.Random) -> Exchange:
    """Makes a short question about another country, to follow one about a country, and its answer."""
    clean = chance.choice(FOLLOW_UPS).format(name=country.name)
    text = as_typed(clean, chance, framed=False)
    return clean if is_reserved(text) else text, CAPITAL_ANSWER.format(**vars(country))


class Answers:
    """Chooses answers, of which every subject gets its kind's share of bad ones, to within one.

    By chance alone some subjects would get few: the model would learn them as exceptions, and a reader's first question
    may be about one.
    """

    def __init__(self, shares: Mapping[str, float], chance: random.Random) -> None:
        """Takes the share of bad answers by kind, where it is not `CAUTION_SHARE`."""
        self.shares, self.chance = shares, chance
        self.owed: dict[tuple[str, str], float] = {}

    def to(self, question: DemoQuestion) -> str:
        """Returns an answer to the question."""
        if not question.bad:
            return self.chance.choice(question.good)
        subject = (question.kind, question.subject)
        owed = self.owed.get(subject, self.chance.random()) + self.shares.get(question.kind, CAUTION_SHARE)
        self.owed[subject] = owed % 1
        return self.chance.choice(question.bad if owed >= 1 else question.good)
