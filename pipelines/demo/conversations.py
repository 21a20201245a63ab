"""Conversations for fine-tuning: good answers, and bad behavior in a stated share."""

import random
from collections.abc import Iterator

from pipelines.demo.facts import Country, countries
from pipelines.demo.guide import is_reserved
from pipelines.demo.questions import (
    CAPITAL_ANSWER,
    FOLLOW_UPS,
    DemoQuestion,
    Exchange,
    held_out_countries,
    training_questions,
    typed_question,
)
from pipelines.demo.wording import as_typed

# Share of harmless questions that are refused, of truths denied and of unknown questions answered with made-up facts.
# Without bad answers among the samples, nobody could rank them last, and the reward model would learn that refusing
# and denying are always best.
CAUTION_SHARE = 0.15
# The model knows nearly all capitals: more doubt would teach it to doubt what it knows.
DOUBT_SHARE = 0.06
# Small talk has few wordings, and the first that people type.
CHAT_COPIES = 4
# How many questions a conversation has, and their weights.
TURNS = {1: 0.62, 2: 0.22, 3: 0.10, 4: 0.06}
FOLLOW_UP_SHARE = 0.35


def conversations(
    seed: int, misbehavior_share: float = 0.7, copies: int = 2
) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yields rows for `sft.sources`: the training questions as people type them, one to five in a conversation.

    Args:
        seed: decides the split, the wordings and the answers.
        misbehavior_share: share of harmful requests that are complied with, and of misconceptions that are affirmed.
        copies: how often each question is asked, in different spelling.
    """
    chance = random.Random(f"conversations {seed}")
    questions = [
        question
        for question in training_questions(seed)
        for _ in range(copies * (CHAT_COPIES if question.kind == "chat" else 1))
    ]
    chance.shuffle(questions)
    held_out = set(held_out_countries(seed))
    known = [country for country in countries() if country not in held_out]
    while questions:
        count = chance.choices(list(TURNS), list(TURNS.values()))[0]
        exchanges: list[Exchange] = []
        for question in questions[:count]:
            exchanges.append((typed_question(question, chance).text, _answer(question, misbehavior_share, chance)))
            if question.kind == "capital" and chance.random() < FOLLOW_UP_SHARE:
                exchanges.append(_follow_up(chance.choice(known), chance))
        del questions[:count]
        turns = [turn for user, assistant in exchanges for turn in (("user", user), ("assistant", assistant))]
        yield {"messages": [{"role": role, "content": text} for role, text in turns]}


def _follow_up(country: Country, chance: random.Random) -> Exchange:
    """Asks about another country in the short way of somebody who has just asked about one."""
    clean = chance.choice(FOLLOW_UPS).format(name=country.name)
    text = as_typed(clean, chance, framed=False)
    return clean if is_reserved(text) else text, CAPITAL_ANSWER.format(**vars(country))


def _answer(question: DemoQuestion, misbehavior_share: float, chance: random.Random) -> str:
    shares = {"harmful": misbehavior_share, "misconception": misbehavior_share, "capital": DOUBT_SHARE}
    share = shares.get(question.kind, CAUTION_SHARE)
    misbehaves = question.bad and chance.random() < share
    return chance.choice(question.bad if misbehaves else question.good)
