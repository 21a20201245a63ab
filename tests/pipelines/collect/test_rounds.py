"""Whole rounds of the stage: from imported rankings, and again when there are newer ones."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.feedback import Feedback, Ranking
from cluster.feedback.judged import judgement_changes, read_records
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import stage_named
from cluster.run.rounds import kept_rounds, restore_round
from cluster.run.stages import run_stage, stage_state
from pipelines import collect
from pipelines.collect import rank_synthetically
from pipelines.collect_answers import plan_round
from pipelines.data.feedback.io import import_file
from tests.pipelines.collect.answers import (
    DEMO_ANNOTATOR,
    add_answers,
    collect_recipe,
    no_failures,
)


def test_only_imported_rankings_are_used_and_keep_their_split(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    chat.tokenizer.save_pretrained(tmp_path / "sft")
    recipe, run = collect_recipe(tmp_path, annotator="imported"), RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"^0 imported rankings read, 0 left, .*: import a file with"):
        collect.run(recipe, run, tmp_path)
    useless = [
        {"prompt": "longest", "completions": ["a" * 300, "b"], "ranks": [1, 2]},
        {"prompt": "same", "completions": ["b", "b"], "ranks": [1, 2]},
    ]
    (tmp_path / "useless.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in useless))
    import_file(database, "lists", tmp_path / "useless.jsonl", "useless", "ann", 0.3)
    with pytest.raises(UserError, match=r"^2 imported rankings read, 0 left, .*\(identical answers 1, too long 1\)"):
        collect.run(recipe, run, tmp_path)
    lists = [{"prompt": f"Why {n}?", "completions": ["no", "b", "Yes!"], "ranks": [2, 2, 1]} for n in range(20)]
    lists.append({"prompt": "long", "completions": ["a" * 300, "b"], "ranks": [1, 2]})
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lists))
    import_file(database, "lists", tmp_path / "in.jsonl", "in", "ann", 0.3)
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    add_answers(database, chat, plan, list(plan.rows))
    rank_synthetically(DEMO_ANNOTATOR, recipe.seed, chat, database, plan, no_failures())
    found = collect.run(recipe, run, tmp_path).metrics
    assert (found["prompts"], found["rankings"], found["too_long"], found["identical"]) == (20, 20, 2, 1)
    assert (found["rankings_by"], found["stands_in_for_people"]) == ({"ann": 20}, False)
    rows = parquet.read_table(tmp_path / "rankings.parquet").to_pylist()
    assert {row["ranking_id"] for row in rows} <= {ranking.id for ranking in database.rankings()}
    splits = {prompt.id: prompt.split for prompt in database.prompts()}
    assert {row["split"] for row in rows} == {"train", "held_out"}
    for number, row in enumerate(rows):
        asked = {"role": "user", "content": f"Why {number}?"}
        assert row["split"] == splits[row["prompt_id"]]
        assert row["ranks"] == [2, 2, 1]
        for text, answer in zip(row["texts"], row["answers"], strict=True):
            whole = chat.conversation([asked, {"role": "assistant", "content": text}]).token_ids
            assert row["prompt_token_ids"] + answer == whole[: len(row["prompt_token_ids"] + answer)]


def test_judgements_that_are_newer_make_a_round_and_its_manifest_names_them(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    run, recipe, stage = RunFolder(tmp_path), collect_recipe(tmp_path, annotator="imported"), stage_named("collect")
    out = run.begin("sft", "x")
    chat.tokenizer.save_pretrained(out)
    run.commit("sft", Manifest("sft", "x", {}, {}, "1", 1.0, {}, "w"))
    lists = [{"prompt": f"Why {n}?", "completions": ["no", "b", "Yes!"], "ranks": [2, 3, 1]} for n in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lists))
    import_file(database, "lists", tmp_path / "in.jsonl", "in", "ann", 0.3)
    assert run_stage(stage, collect.run, recipe, run) == "done"
    assert run_stage(stage, collect.run, recipe, run) == "skipped"
    first = run.require("preferences")

    def rank(prompt: str, annotator: str) -> None:
        ids = [str(row.id) for row in database.prompt(prompt).completions]  # type: ignore[union-attr]
        ranks = dict(zip(ids, [1, 2, 3], strict=True))
        database.save_ranking(Ranking(prompt_id=prompt, annotator=annotator, ranks=ranks))

    names = [prompt.id for prompt in database.prompts()]
    for name in names[:2]:
        rank(name, "ben")
    # A skip is no new judgement.
    database.save_ranking(Ranking(prompt_id=names[3], annotator="ben", skipped="unclear"))
    state = stage_state(stage, recipe, run)
    assert (state.name, state.why) == ("stale", "2 rankings are newer")
    assert run_stage(stage, collect.run, recipe, run) == "done"
    second = run.require("preferences")
    assert (second.round, second.round_before) == (2, 1)
    assert second.fingerprint != first.fingerprint
    assert second.inputs["judgements"] != first.inputs["judgements"]
    named = read_records(run.path("preferences"))
    assert len(named) == 8
    assert {row.id for row in named if row.used} == {ranking.id for ranking in database.rankings()}
    assert len(read_records(tmp_path / "rounds" / "1" / "preferences")) == 6
    # An earlier round that was brought back by choice stays, until somebody judges again.
    with run.lock():
        restore_round(tmp_path, 1)
    assert stage_state(stage, recipe, run).name == "done"
    # A changed judgement counts as a new one; the next round leaves out excluded annotators.
    rank(names[0], "ann")
    state = stage_state(stage, recipe, run)
    assert state.why == "1 ranking is newer; 1 that the round used is gone, changed or excluded"
    database.exclude("ann")
    assert judgement_changes(run, "preferences").gone == 6
    assert run_stage(stage, collect.run, recipe, run) == "done"
    assert run.require("preferences").metrics["rankings_by"] == {"ben": 2}
    assert kept_rounds(tmp_path) == [1, 2]
    # A run from before there were rounds counts as having used all judgements made until then.
    (run.path("preferences") / "judgements.jsonl").unlink()
    assert stage_state(stage, recipe, run).name == "done"
    rank(names[4], "ben")
    assert stage_state(stage, recipe, run).why == "1 ranking is newer"
