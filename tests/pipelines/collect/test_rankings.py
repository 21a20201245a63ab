"""Rankings of a round, by functions and by people, and the rows that are made of them."""

import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from actors.model.chat import Chat
from cluster.errors import StageError
from cluster.feedback import Feedback, Ranking
from cluster.recipe.base import Call
from cluster.recipe.collect import ChatSource
from pipelines.collect import rank_synthetically, ranking_rows, wait_for_people
from pipelines.collect_answers import answer_variety, plan_round, stored_completions
from pipelines.data.preferences import rankings
from pipelines.data.preferences.annotators import SyntheticAnnotator
from pipelines.data.prompts import read_prompts
from tests.demo_recipe import DEMO_PROMPTS
from tests.pipelines.collect.answers import (
    BY_LENGTH,
    DEMO_ANNOTATOR,
    REFUSAL,
    add_answers,
    add_plan,
    collect_recipe,
    demo_annotator_of,
    no_failures,
)

DEMO_SOURCES = [ChatSource(**DEMO_PROMPTS)]


def test_a_resumed_round_has_the_rankings_of_an_uninterrupted_one(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    recipe, annotator = collect_recipe(tmp_path), demo_annotator_of(0.5)
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    names = list(plan.rows)
    add_answers(database, chat, plan, names[:10])
    assert [len(found) for found in stored_completions(database, plan).values()] == [4] * 10 + [0] * 20
    add_answers(database, chat, plan, names)
    rank_synthetically(annotator, recipe.seed, chat, database, plan, no_failures())
    first = ranking_rows(annotator, chat, database, plan, no_failures(), [])
    # The same command after an interruption: a new plan on the same database changes nothing.
    again = plan_round(recipe, chat, "w")
    database.add_prompts(list(again.rows.values()))
    add_answers(database, chat, again, names)
    rank_synthetically(annotator, recipe.seed, chat, database, again, no_failures())
    assert ranking_rows(annotator, chat, database, again, no_failures(), []) == first
    counts = database.counts()
    assert (counts.prompts, counts.completions, counts.rankings) == (30, 120, 30)


def test_rows_hold_ids_ranks_and_noiseless_grades(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    recipe, annotator = collect_recipe(tmp_path), demo_annotator_of(0.0)
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    add_answers(database, chat, plan, list(plan.rows))
    rank_synthetically(annotator, recipe.seed, chat, database, plan, no_failures())
    rankings.write_rankings(
        ranking_rows(annotator, chat, database, plan, no_failures(), []), tmp_path / "rankings.parquet"
    )
    rows = parquet.read_table(tmp_path / "rankings.parquet").to_pylist()
    assert len(rows) == len({row["prompt_id"] for row in rows}) == 30
    assert {row["annotator"] for row in rows} == {"code (pipelines.demo.annotator:annotate noise=0.0)"}
    held_out = round(30 * recipe.collect.held_out_share)
    assert Counter(row["split"] for row in rows) == {"train": 30 - held_out, "held_out": held_out}
    texts = {text.id: text for text in read_prompts(DEMO_SOURCES, recipe.seed)}
    for row in rows:
        assert row["prompt_token_ids"] == chat.prompt(texts[row["prompt_id"]].messages)
        assert row["answers"][0] == [*chat.tokenizer.encode(REFUSAL), chat.end_of_turn_id]
        # Without noise, ranks and grades order every pair alike.
        for first in range(4):
            for second in range(4):
                better = row["grades"][first] > row["grades"][second]
                assert better == (row["ranks"][first] < row["ranks"][second])
        if row["kind"] == "harmful":
            assert row["grades"] == [4, 3, 1, 0]
            assert row["ranks"] == [1, 2, 3, 4]
    assert rankings.tie_share(rows) > 0
    shown = {tuple(sorted(r.presented).index(i) for i in r.presented) for r in database.rankings()}
    assert len(shown) > 5


def test_another_noise_ranks_again_and_keeps_the_old_rankings(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    plan = plan_round(collect_recipe(tmp_path), chat, "w")
    database.add_prompts(list(plan.rows.values()))
    add_answers(database, chat, plan, list(plan.rows))
    for noise in (0.0, 1.0):
        recipe, annotator = collect_recipe(tmp_path), demo_annotator_of(noise)
        rank_synthetically(annotator, recipe.seed, chat, database, plan, no_failures())
        rows = ranking_rows(annotator, chat, database, plan, no_failures(), [])
        assert {row["annotator"] for row in rows} == {f"code (pipelines.demo.annotator:annotate noise={noise})"}
        assert len(rows) == 30
    assert database.counts().rankings == 60


def test_the_wait_for_people_keeps_their_rankings(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    recipe = collect_recipe(tmp_path, annotator="people")
    plan = plan_round(recipe, chat, "w")
    database.add_prompts(list(plan.rows.values()))
    add_answers(database, chat, plan, list(plan.rows))
    # Rankings by code do not count here.
    rank_synthetically(DEMO_ANNOTATOR, recipe.seed, chat, database, plan, no_failures())
    answers = stored_completions(database, plan)

    def rank(name: str, annotator: str) -> None:
        ids = [completion.id for completion in answers[name]]
        ranks = {str(ids[0]): 1, str(ids[1]): 1, str(ids[2]): 2, str(ids[3]): 3}
        database.add_ranking(Ranking(prompt_id=name, annotator=annotator, ranks=ranks, presented=ids))

    names = list(plan.rows)
    rank(names[0], "ada")
    with pytest.raises(StageError, match=r"people have made 1 of 3 rankings.*same command continues"):
        wait_for_people(database, plan, 3, seconds=0.2)

    def later() -> None:
        time.sleep(0.3)
        rank(names[0], "grace")
        rank(names[5], "grace")

    thread = threading.Thread(target=later)
    thread.start()
    wait_for_people(database, plan, 3, seconds=30)
    thread.join()
    rows = ranking_rows(None, chat, database, plan, no_failures(), database.peoples_judgements().rankings)
    assert sorted(row["annotator"] for row in rows) == ["ada", "grace", "grace"]
    # Two of the four texts are the same: they are one answer, with their samples.
    assert all(row["grades"] is None and row["ranks"] == [1, 2, 3] for row in rows)
    assert all(row["samples"] == [2, 1, 1] for row in rows)
    # The table names every ranking, and the digest changes with any of them.
    assert [row["ranking_id"] for row in rows] == sorted(row["ranking_id"] for row in rows)
    before = rankings.rankings_digest(rows)
    assert rankings.rankings_digest([{**rows[0], "ranks": [2, 1, 1, 1]}, *rows[1:]]) != before
    database.exclude("grace")
    left = ranking_rows(None, chat, database, plan, no_failures(), database.peoples_judgements().rankings)
    assert [row["annotator"] for row in left] == ["ada"]
    assert rankings.rankings_digest(left) != before
    # Rankings of one prompt by two people are on the same side of the split.
    assert len({row["split"] for row in rows if row["prompt_id"] == rows[0]["prompt_id"]}) == 1


def test_equal_answers_are_one_and_prompts_with_a_single_one_are_not_ranked(
    tmp_path: Path, chat: Chat, database: Feedback
) -> None:
    plan = plan_round(collect_recipe(tmp_path), chat, "w")
    two, three = list(plan.rows)[:2]
    add_plan(database, chat, plan, {two: ["aa", "b", "aa", "aa"], three: ["aa", "b", "ccc", "b"]})
    own = SyntheticAnnotator.of(Call(function=BY_LENGTH))
    for annotator in (own, None):
        variety = answer_variety(database, plan, annotator, chat.end_ids)
        assert (variety.prompts, variety.informative) == ({1: 28, 2: 1, 3: 1}, {two, three})
    assert variety.sentence() == (
        "28 of 30 prompts have identical answers and are not ranked; 1 have two different ones, 2 two or more"
    )
    assert [name for name, _ in database.open_tasks("ann", people=1)] == [three, two]
    rank_synthetically(own, 1, chat, database, plan, no_failures())
    assert {ranking.prompt_id for ranking in database.rankings()} == {two, three}
    rows = ranking_rows(own, chat, database, plan, no_failures(), [])
    assert [row["texts"] for row in rows] == [["aa", "b"], ["aa", "b", "ccc"]]
    assert [row["ranks"] for row in rows] == [[2, 1], [2, 1, 3]]
    assert [row["samples"] for row in rows] == [[3, 1], [1, 2, 1]]


def test_rankings_of_identical_answers_count_for_nothing(tmp_path: Path, chat: Chat, database: Feedback) -> None:
    plan = plan_round(collect_recipe(tmp_path, annotator="people"), chat, "w")
    two, same, *_ = plan.rows
    add_plan(database, chat, plan, {two: ["aa", "b", "aa", "aa"]})
    for name in (two, same):
        ids = [completion.id for completion in stored_completions(database, plan)[name]]
        # An earlier version stored identical answers apart.
        ranks = {str(number): rank for number, rank in zip(ids, (1, 2, 3, 1), strict=True)}
        database.add_ranking(Ranking(prompt_id=name, annotator="ann", ranks=ranks, presented=ids))
    with pytest.raises(StageError, match="people have made 1 of 2 rankings"):
        wait_for_people(database, plan, 2, seconds=0.1)
    (row,) = ranking_rows(None, chat, database, plan, no_failures(), database.peoples_judgements().rankings)
    # The mean rank of 1, 3 and 1 is better than 2.
    assert (row["texts"], row["ranks"], row["samples"]) == (["aa", "b"], [1, 2], [3, 1])
