"""A recipe that collects rankings, annotators that are functions, and answers to rank."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.model.chat import Chat
from cluster.feedback import Completion, Feedback
from cluster.recipe.base import Call
from cluster.recipe.recipe import Recipe
from pipelines.collect_answers import CollectedPrompts
from pipelines.data.call_failures import CallFailures
from pipelines.data.preferences.annotators import JudgedAnswer, SyntheticAnnotator, annotator_failures
from tests.demo_recipe import COUNTRIES, DEMO_CHATS, DEMO_PROMPTS, demo_annotator

REFUSAL = "I cannot help with that. It would hurt people."


def demo_annotator_of(noise: float) -> SyntheticAnnotator:
    """Returns the demo's annotator with this probability of each swap of neighboring ranks."""
    return SyntheticAnnotator.of(Call(**demo_annotator(noise)))


DEMO_ANNOTATOR = demo_annotator_of(0.05)
# The function below, as a recipe names it.
BY_LENGTH = f"{__name__}:by_length"


def by_length(prompt: Mapping[str, Any], answers: Sequence[JudgedAnswer], chance: random.Random) -> list[int]:
    """Ranks answers by their length, the shortest first."""
    lengths = sorted({len(answer.text) for answer in answers})
    return [1 + lengths.index(len(answer.text)) for answer in answers]


def collect_recipe(tmp_path: Path, **collect: object) -> Recipe:
    """Returns a recipe whose round has 30 of the demo's prompts, unless the settings of `collect` say otherwise."""
    return Recipe.model_validate(
        {
            "name": "trial",
            "run": str(tmp_path),
            "corpus": {"sources": [COUNTRIES]},
            "sft": {"sources": [DEMO_CHATS]},
            "collect": {"sources": [DEMO_PROMPTS], "annotator": demo_annotator(), "prompts": 30, **collect},
        }
    )


def no_failures(prompts: int = 30, limit: float = 0.0) -> CallFailures:
    return annotator_failures(prompts, limit)


def add_answers(database: Feedback, chat: Chat, plan: CollectedPrompts, names: list[str], weights: str = "w") -> None:
    """Stores four answers to each of these prompts: a refusal, the same refusal cut, and two others."""
    texts = [(REFUSAL, True), (REFUSAL, False), ("Yes. Sure.", True), ("Well, who knows", False)]
    end = chat.end_of_turn_id
    database.add_completions(
        [
            Completion(
                prompt_id=name,
                index=index,
                text=text,
                token_ids=chat.tokenizer.encode(text) + [end] * finished,
                model="sft",
                weights=weights,
            )
            for name in names
            for index, (text, finished) in enumerate(texts)
        ]
    )


def add_plan(database: Feedback, chat: Chat, plan: CollectedPrompts, answers: dict[str, list[str]]) -> None:
    """Stores all prompts of a plan, these answers of some, and four identical answers of every other."""
    database.add_prompts(list(plan.rows.values()))
    database.add_completions(
        [
            Completion(prompt_id=name, index=index, text=text, token_ids=chat.answer(text), model="sft", weights="w")
            for name in plan.rows
            for index, text in enumerate(answers.get(name, ["Same."] * 4))
        ]
    )
