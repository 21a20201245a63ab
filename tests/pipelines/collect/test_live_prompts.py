"""Prompts of live traffic as a source: which are asked, that later ones move nothing, and that deleted ones go."""

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.model.chat import Chat
from cluster.feedback import Completion, Feedback, LivePrompt, Ranking
from cluster.feedback.live import read_live, rounds_with
from cluster.recipe.collect import ChatSource
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.collect_answers import CollectedPrompts, plan_round, round_mark
from pipelines.data.live_prompts import LivePrompts, choose_live, is_there, keep_stored
from pipelines.rlhf.setup import training_prompts
from tests.demo_recipe import DEMO_CHATS, DEMO_PROMPTS
from tests.pipelines.collect.answers import collect_recipe


def live_recipe(tmp_path: Path, limit: int = 10) -> Recipe:
    return collect_recipe(tmp_path, sources=[DEMO_PROMPTS, {"kind": "live", "limit": limit}])


def add(database: Feedback, text: str, age: float = 0.0, days: float = 1.0, request: str = "r") -> None:
    messages = [{"role": "user", "content": text}]
    now = time.time()
    row: dict[str, Any] = {"request": request, "caller": "ann", "model": "policy", "consent": "ask"}
    database.add_live(LivePrompt(messages=messages, created=now - age, expires=now + days * 86_400, **row))


def plan(recipe: Recipe, chat: Chat, database: Feedback, out: Path) -> tuple[CollectedPrompts, LivePrompts]:
    out.mkdir(parents=True, exist_ok=True)
    live = choose_live(recipe, chat, database, round_mark(recipe, "w"), out)
    assert live is not None
    found = plan_round(recipe, chat, "w", live)
    database.add_prompts(list(found.rows.values()))
    return found, live


def asked(found: CollectedPrompts) -> dict[str, str]:
    """Returns the live prompts of a round: their texts, with their names in the database."""
    return {row.messages[0]["content"]: name for name, row in found.rows.items() if row.details["kind"] == "live"}


def test_the_newest_live_prompts_are_asked_beside_the_others_and_stay_asked(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    recipe = live_recipe(tmp_path, limit=2)
    others = plan_round(collect_recipe(tmp_path), chat, "w").rows
    for age, text in enumerate(("third", "second", "second", "first")):
        add(database, text, age=10.0 * (4 - age))
    add(database, "expired", days=-1.0)
    add(database, "x" * 2_000)
    first, live = plan(recipe, chat, database, tmp_path / "one")
    assert asked(first).keys() == {"first", "second"}
    assert live.counts == {
        "stored": 5, "expired": 1, "used": 2, "new": 2, "equal": 1, "too_long": 1, "over_limit": 1
    }  # fmt: skip
    # The prompts of the other sources keep their names and splits, on which their rankings depend.
    assert {name: row.split for name, row in others.items()}.items() <= {
        name: row.split for name, row in first.rows.items()
    }.items()
    add(database, "newer")
    # A resumed round asks what it chose at first, a later one also the newest.
    assert asked(plan(recipe, chat, database, tmp_path / "one")[0]) == asked(first)
    second = plan(recipe, chat, database, tmp_path / "two")[0]
    assert asked(second).keys() == {"first", "second", "newer", "third"}
    assert asked(first).items() <= asked(second).items()


def test_a_deleted_prompt_is_gone_with_its_judgements_and_from_later_rounds(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    recipe, run = live_recipe(tmp_path), RunFolder(tmp_path)
    add(database, "keep me", request="r1")
    add(database, "forget me", request="r2")
    folder = run.path("preferences")
    found, live = plan(recipe, chat, database, folder)
    names = asked(found)
    assert {"keep me", "forget me"} <= {
        one.messages[0]["content"] for one in training_prompts(recipe, chat).inputs.values()
    }
    for name in names.values():
        ids = database.add_completions(
            [
                Completion(prompt_id=name, index=index, text=text, token_ids=[1], model="sft", weights="w")
                for index, text in enumerate("ab")
            ]
        )
        ranks = {str(one): place for place, one in enumerate(ids, 1)}
        database.add_ranking(Ranking(prompt_id=name, annotator="ann", ranks=ranks))
    deleted = database.delete_live(request="r2")
    assert (len(deleted.prompts), deleted.judgements) == (1, 1)
    assert rounds_with(run, deleted.prompts) == [1]
    assert [row.prompt_id for row in database.rankings()] == [names["keep me"]]
    assert database.prompt(names["forget me"]) is None
    assert [is_there(database, found.rows[name]) for name in (names["keep me"], names["forget me"])] == [True, False]
    keep_stored(live, database, folder)
    assert (live.counts["used"], live.counts["deleted_meanwhile"]) == (1, 1)
    assert [row["messages"][0]["content"] for row in read_live(folder)] == ["keep me"]
    assert "forget me" not in asked(plan(recipe, chat, database, tmp_path / "two")[0])
    assert "forget me" not in str(training_prompts(recipe, chat).inputs)


def test_live_prompts_are_no_source_of_conversations(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="kind live are for collect"):
        Recipe.model_validate(
            {
                "name": "trial",
                "run": str(tmp_path),
                "sft": {"sources": [DEMO_CHATS, {"kind": "live"}]},
                "collect": {"sources": [DEMO_PROMPTS]},
            }
        )
    with pytest.raises(ValidationError, match="takes no path; only one of kind files does"):
        ChatSource(kind="live", path="prompts.jsonl")
