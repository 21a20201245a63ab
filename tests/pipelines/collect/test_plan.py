"""The plan of a round: its prompts, their names, and the prompts that are left out."""

from pathlib import Path

import pytest

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.feedback import Completion, Feedback
from pipelines.collect_answers import plan_round, prompt_shortage, prompts_to_sample, sampling_of
from tests.pipelines.collect.answers import add_plan, collect_recipe


def test_names_of_prompts_depend_on_weights_and_sampling(tmp_path: Path, chat: Chat) -> None:
    plan = plan_round(collect_recipe(tmp_path), chat, "w")
    assert len(plan.rows) == 30
    assert list(plan.rows) == sorted(plan.rows)
    assert plan_round(collect_recipe(tmp_path), chat, "w").rows.keys() == plan.rows.keys()
    assert not plan_round(collect_recipe(tmp_path), chat, "other weights").rows.keys() & plan.rows.keys()
    assert not plan_round(collect_recipe(tmp_path, temperature=0.7), chat, "w").rows.keys() & plan.rows.keys()
    # A larger round keeps the prompts of a smaller one, whose answers need not be sampled again.
    assert plan.rows.keys() < plan_round(collect_recipe(tmp_path, prompts=60), chat, "w").rows.keys()
    name, row = next(iter(plan.rows.items()))
    assert plan.token_ids[name] == chat.prompt(row.messages)


def test_prompts_without_room_for_an_answer_are_left_out(tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "' + "long " * 100 + '"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    recipe = collect_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}], annotator="people")
    plan = plan_round(recipe, chat, "w")
    assert sorted(row.messages[0]["content"] for row in plan.rows.values()) == ["b", "c"]
    assert prompt_shortage(recipe, chat, len(plan.rows)).startswith(
        f"3 prompts of collect.sources read, 2 left, and collect.prompts asks for {recipe.collect.prompts} (no room for"
    )
    assert prompt_shortage(recipe, chat, recipe.collect.prompts) == ""
    path.write_text('{"prompt": "' + "long " * 100 + '"}\n{"prompt": "b"}\n{"prompt": "b"}\n')
    with pytest.raises(
        UserError,
        match=r"3 prompts of collect\.sources read, 1 left.*\(equal to another 1, no room for an answer 1\)",
    ):
        plan_round(recipe, chat, "w")
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    one = collect_recipe(tmp_path, sources=[{"kind": "files", "path": str(path)}], annotator="people", prompts=1)
    with pytest.raises(
        UserError, match=r"\(more than collect\.prompts 2\).*: raise collect\.prompts \(now 1\), or add"
    ):
        plan_round(one, chat, "w")


def test_prompts_with_identical_answers_are_sampled_again_a_few_times(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    recipe = collect_recipe(tmp_path, redraws=2)
    plan = plan_round(recipe, chat, "w")
    first, second, unsampled, *others = plan.rows
    add_plan(database, chat, plan, {first: ["a", "b", "a", "a"], unsampled: []})
    assert prompts_to_sample(recipe, database, plan, 0) == [unsampled]
    assert prompts_to_sample(recipe, database, plan, 1) == [second, *others]
    again = {"prompt_id": second, "token_ids": [], "model": "sft", "weights": "w"}
    database.add_completions([Completion(index=4 + number, text=f"{number}", **again) for number in range(4)])
    assert prompts_to_sample(recipe, database, plan, 1) == others
    assert prompts_to_sample(recipe, database, plan, 2) == others
    drawn = [sampling_of(recipe, times) for times in range(3)]
    assert [one.temperature for one in drawn] == [1.0, 1.5, 2.0]
    assert len({one.seed for one in drawn}) == 3
