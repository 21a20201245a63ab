"""What people are asked first: by real reward models that disagree, at random before there are any, and again alike."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from actors.model.chat import Chat
from actors.model.reward_head import MEMBER_PREFIX, member_folders
from actors.rewards.scorer import ScoreFunction, Scorer
from cluster.feedback import AT_RANDOM, Feedback, FeedbackPrompt, Ranking
from cluster.feedback.quality import agreement_report
from cluster.recipe.collect import Select
from cluster.recipe.recipe import Recipe
from cluster.run.folder import Manifest, RunFolder
from pipelines import collect
from pipelines.collect_answers import plan_round, round_mark
from pipelines.data.preferences.ask_order import RewardModels, order_prompts, pair_scores, placed
from serve.pages.label_tasks import TaskAssigner
from tests.helpers import triptych_here
from tests.pipelines.collect.answers import add_plan, collect_recipe
from tests.tiny import write_tiny_model, write_tiny_reward_model

ANSWERS = ["Lima.", "It is Quito, surely.", "the sea shells", "Who knows?"]


def select_recipe(tmp_path: Path, by: str = "disagreement", share: float = 0.25, **collect: Any) -> Recipe:
    select = {"by": by, "random_share": share}
    recipe = collect_recipe(tmp_path, annotator="people", min_rankings=1, redraws=0, **collect)
    given = recipe.model_dump(exclude_unset=True) | {"reward": {"members": 2}}
    return Recipe.model_validate({**given, "collect": {**given["collect"], "select": select}})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> RewardModels:
    """Two random reward models, which have nothing in common."""
    folder = tmp_path_factory.mktemp("models") / "reward"
    write_tiny_reward_model(folder, 0.0, 1.0, seed=3)
    write_tiny_reward_model(folder / f"{MEMBER_PREFIX}2", 0.0, 1.0, seed=8)
    return RewardModels(folder, "weights of round 1", 1)


@pytest.fixture
def own_chat(models: RewardModels) -> Chat:
    return Chat.of(models.folder)


@contextmanager
def scorer() -> Iterator[ScoreFunction]:
    yield Scorer("float32", 1).scores


def no_scorer() -> AbstractContextManager[ScoreFunction]:
    raise AssertionError("the answers were scored again")


def start_round(recipe: Recipe, chat: Chat, database: Feedback, same: int = 3) -> list[str]:
    """Stores different answers to every prompt of the round but the first few; returns the names of these prompts."""
    plan = plan_round(recipe, chat, "w")
    differing = list(plan.rows)[same:]
    add_plan(database, chat, plan, {name: [f"{text} {name[9:14]}" for text in ANSWERS] for name in differing})
    return differing


def judge(database: Feedback, name: str, annotator: str, reverse: bool = False) -> None:
    prompt = database.prompt(name)
    assert prompt is not None
    ids = [one.id or 0 for one in prompt.completions]
    ranks = {str(key): rank for key, rank in zip(ids[::-1] if reverse else ids, range(1, len(ids) + 1), strict=True)}
    database.save_ranking(Ranking(prompt_id=name, annotator=annotator, ranks=ranks, presented=ids))


def test_the_criteria_are_those_of_the_formulas() -> None:
    # The two models prefer the first answer with the probabilities 0.9 and 0.5.
    rewards = np.array([[np.log(9.0), 0.0], [2.0, 2.0]])
    assert pair_scores(rewards, "disagreement") == pytest.approx(0.04)
    assert pair_scores(rewards, "uncertainty") == pytest.approx(0.7 * 0.3)
    assert pair_scores(np.array([[1e6, -1e6], [-1e6, 1e6]]), "disagreement") == pytest.approx(0.25)
    assert pair_scores(np.array([[1.0, 1.0, 1.0]]), "uncertainty") == pytest.approx(0.25)


def test_held_out_prompts_and_a_share_of_the_others_come_at_random() -> None:
    prompts = [
        FeedbackPrompt(id=f"p{number:03d}", messages=[], split="held_out" if number % 10 == 0 else "train")
        for number in range(400)
    ]
    scores = {row.id: float(number) for number, row in enumerate(prompts)}
    order = placed(prompts, scores, Select(random_share=0.25), seed=1)
    assert [one.place for one in order] == list(range(400))
    assert {one.prompt for one in order} == scores.keys()
    chosen = [one for one in order if one.chosen_by == "disagreement"]
    at_random = {one.prompt for one in order if one.chosen_by == AT_RANDOM}
    assert [one.chosen_score for one in chosen] == sorted((one.chosen_score for one in chosen), reverse=True)
    assert {row.id for row in prompts if row.split == "held_out"} <= at_random
    # A quarter of 360 is 90, with a deviation of 8.2; they are spread over the whole order.
    assert 60 < len(at_random) - 40 < 120
    assert 20 < sum(one.prompt in at_random for one in order[:100]) < 50
    # Which come at random follows from prompt and seed alone: other scores, and fewer prompts, choose the same.
    fewer = placed(prompts[:200], {name: -score for name, score in scores.items()}, Select(random_share=0.25), seed=1)
    assert {one.prompt for one in fewer if one.chosen_by == AT_RANDOM} == at_random & {row.id for row in prompts[:200]}
    assert placed(prompts, scores, Select(random_share=0.25), seed=2) != order


def test_people_are_asked_first_where_the_reward_models_disagree(
    tmp_path: Path, own_chat: Chat, database: Feedback, models: RewardModels
) -> None:
    recipe = select_recipe(tmp_path)
    differing = start_round(recipe, own_chat, database)
    mark = round_mark(recipe, "w")
    said = order_prompts(recipe, database, own_chat, mark, models, scorer)
    assert "on which the 2 reward models of round 1 disagree; 25% of the training prompts" in said
    rows = {row.id: row for row in database.prompts() if row.place is not None}
    assert rows.keys() == set(differing)
    order = sorted(rows, key=lambda name: rows[name].place or 0)
    # The page hands them out so.
    assert [name for name, _ in database.open_tasks("ann", people=1)] == order
    chosen = [name for name in order if rows[name].chosen_by == "disagreement"]
    for name in chosen[:3]:
        sequences = [own_chat.prompt(rows[name].messages) + one.token_ids for one in rows[name].completions]
        rewards = np.array(
            [Scorer("float32", 1).scores([folder], sequences) for folder in member_folders(models.folder)]
        )
        assert rows[name].chosen_score == pytest.approx(pair_scores(rewards, "disagreement"), abs=1e-5)
    assert [rows[name].chosen_score for name in chosen] == sorted(
        (rows[name].chosen_score for name in chosen), reverse=True
    )
    assert 0 < len(chosen) < len(order)
    # Killed and run again, while people go on: the order stays, and nothing is scored again.
    task, _ = TaskAssigner(database, 1).next_task("ann", 0)
    assert task is not None
    assert task.prompt == order[0]
    judge(database, order[0], "ann")
    assert order_prompts(recipe, database, own_chat, mark, models, no_scorer) == said
    assert [name for name, _ in database.open_tasks("ann", people=1)] == order[1:]
    # The next round's reward model orders what is left; what was judged keeps its reason.
    before = database.prompt(order[0])
    others = RewardModels(models.folder, "weights of round 2", 2)
    order_prompts(recipe, database, own_chat, mark, others, scorer)
    after = database.prompt(order[0])
    assert before is not None
    assert after is not None
    assert (after.chosen_by, after.chosen_from) == (before.chosen_by, before.chosen_from)
    assert len({row.chosen_from for row in database.prompts() if row.place is not None}) == 2


def test_without_a_reward_model_that_can_choose_all_come_at_random_and_it_says_so(
    tmp_path: Path, own_chat: Chat, chat: Chat, database: Feedback, models: RewardModels
) -> None:
    recipe = select_recipe(tmp_path)
    differing = start_round(recipe, own_chat, database)
    mark = round_mark(recipe, "w")
    said = order_prompts(recipe, database, own_chat, mark, None, no_scorer)
    assert said.endswith("whatever collect.select says: no earlier round has a reward model")
    rows = [row for row in database.prompts() if row.place is not None]
    assert sorted(row.id for row in rows) == differing
    assert {(row.chosen_by, row.chosen_score) for row in rows} == {(AT_RANDOM, None)}
    single = RewardModels(models.folder / f"{MEMBER_PREFIX}2", "one member", 1)
    assert "one member, which cannot disagree" in order_prompts(recipe, database, own_chat, mark, single, no_scorer)
    assert "another tokenizer" in order_prompts(recipe, database, chat, mark, models, no_scorer)
    unsure = select_recipe(tmp_path, by="uncertainty")
    assert "is least sure" in order_prompts(unsure, database, own_chat, mark, single, scorer)
    assert "uncertainty" in {row.chosen_by for row in database.prompts()}
    # A recipe without the setting gives no places.
    order_prompts(collect_recipe(tmp_path), database, own_chat, mark, models, no_scorer)
    assert all(row.place is None for row in database.prompts())


def test_agreement_leaves_out_the_prompts_that_were_chosen(
    tmp_path: Path, own_chat: Chat, database: Feedback, models: RewardModels
) -> None:
    recipe = select_recipe(tmp_path, share=0.5)
    start_round(recipe, own_chat, database)
    order_prompts(recipe, database, own_chat, round_mark(recipe, "w"), models, scorer)
    rows = [row for row in database.prompts() if row.place is not None]
    # Two people agree on every prompt that came at random, and on none that was chosen.
    for row in rows:
        judge(database, row.id, "ann")
        judge(database, row.id, "ben", reverse=row.chosen_by != AT_RANDOM)
    chosen = sum(row.chosen_by != AT_RANDOM for row in rows)
    found = agreement_report(database)
    assert found["counts"]["chosen"] == 2 * chosen > 0
    assert found["counts"]["rankings"] == 2 * len(rows)
    everybody = found["agreement"][0]
    assert (everybody["shared"], everybody["alpha"]["value"]) == (len(rows) - chosen, 1.0)
    assert found["disputed"]


def test_a_round_records_why_each_prompt_was_asked(
    tmp_path: Path, database: Feedback, models: RewardModels, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = select_recipe(tmp_path), RunFolder(tmp_path)
    write_tiny_model(run.path("sft"), 1, end_id=4)
    manifest = Manifest(stage="sft", fingerprint="f", config={}, inputs={}, version="", seconds=0.0, weights="w")
    (run.path("sft") / "manifest.json").write_text(json.dumps(vars(manifest)))
    chat = Chat.of(run.path("sft"))
    differing = start_round(recipe, chat, database)
    judge(database, differing[0], "ann")
    (tmp_path / "out").mkdir()
    first = collect.run(recipe, run, tmp_path / "out").metrics
    assert "no earlier round has a reward model" in capsys.readouterr().out
    assert (first["chosen"], first["at_random"]) == (0, len(differing) - 1)
    judge(database, differing[1], "ann")
    # The reward model of that round stands in the run's folder when the next begins.
    run.path("reward").symlink_to(models.folder)
    trained = vars(manifest) | {"stage": "reward", "weights": models.weights, "round": 1}
    (models.folder / "manifest.json").write_text(json.dumps(trained))
    second = collect.run(recipe, run, tmp_path / "out").metrics
    assert "the 2 reward models of round 1 disagree" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "asked.jsonl").read_text().splitlines()]
    assert second["chosen"] == sum(row["chosen_by"] == "disagreement" for row in rows) > 0
    assert second["at_random"] == sum(row["chosen_by"] == AT_RANDOM for row in rows)
    assert [row["prompt"] for row in rows if row["judged"]] == [differing[1]]
    assert second["judged_by_choice"] == {AT_RANDOM: 1}
    assert all(row["score"] is not None for row in rows if row["chosen_by"] == "disagreement")
    before = (tmp_path / "out" / "asked.jsonl").read_bytes()
    collect.run(recipe, run, tmp_path / "out")
    assert (tmp_path / "out" / "asked.jsonl").read_bytes() == before


def test_recipes_that_cannot_choose_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="annotator imported asks nobody"):
        collect_recipe(tmp_path, annotator="imported", select={})
    with pytest.raises(ValidationError, match=r"set reward\.members to 2 or more, or collect\.select\.by"):
        collect_recipe(tmp_path, select={})
    assert collect_recipe(tmp_path, select={"by": "uncertainty"}).collect.select == Select(by="uncertainty")


def test_the_plan_says_in_which_order_people_are_asked(recipe_path: Path) -> None:
    words = ("run", recipe_path, "--plan", "reward.members=2", "collect.select={random_share: 0.5}")
    done = triptych_here(*words, cwd=recipe_path.parent)
    assert done.returncode == 0, done.stderr
    assert "collect.select: people are asked in random order" in done.stdout
    assert "no earlier round has a reward model" in done.stdout
