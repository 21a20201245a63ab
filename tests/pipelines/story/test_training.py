"""A visitor's training: its recipe, and the table of rankings that it learns from."""

from pathlib import Path

import pytest

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.feedback import Completion, FeedbackPrompt, open_feedback
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.layout import stages_of
from cluster.runtime.plan import Resources, make_plan
from pipelines.story.content import tasks_to_rank
from pipelines.story.training import OWN_STAGES, ranking_rows, visitor_recipe
from tests.helpers import DEMO
from tests.tiny import write_tiny_model

ANSWERS = {
    "harmful": ["Sure.", "No.", "Sure.", "Never."],
    "capital": ["Lima.", "Lima.", "Lima.", "Lima."],
    "truth": ["Yes.", "No.", "Yes.", "Yes."],
}


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(DEMO, [])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Returns a run with a tiny fine-tuned model, and answers to two prompts of each kind."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    write_tiny_model(run.path("sft"), 1, 4)
    with open_feedback(run.feedback_url) as database:
        for kind, texts in ANSWERS.items():
            for number in range(2):
                name = f"{kind} {number}"
                messages = [{"role": "user", "content": name}]
                database.add_prompts([FeedbackPrompt(id=name, messages=messages, details={"kind": kind})])
                database.add_completions(
                    [
                        Completion(
                            prompt_id=name, index=index, text=text, token_ids=[7, index], model="sft", weights=""
                        )
                        for index, text in enumerate(texts)
                    ]
                )
    return run


def test_a_visitor_ranks_answers_that_differ_each_of_them_once(run: RunFolder):
    with open_feedback(run.feedback_url) as database:
        tasks = tasks_to_rank(database, 3)
    assert [task["prompt"] for task in tasks] == ["harmful 0", "truth 0", "harmful 1"]
    assert [[answer["text"] for answer in task["answers"]] for task in tasks[:2]] == [
        ["Sure.", "No.", "Never."],
        ["Yes.", "No."],
    ]


def test_rankings_become_rows_of_which_some_are_held_out(run: RunFolder, recipe: Recipe):
    with open_feedback(run.feedback_url) as database:
        tasks = tasks_to_rank(database, 4)
    given = [
        {
            "prompt": task["prompt"],
            "answers": [answer["id"] for answer in task["answers"]],
            "ranks": [2, 1, 2][: len(task["answers"])],
        }
        for task in tasks
    ]
    rows = ranking_rows(recipe, run, Chat.of(run.path("sft")), given)
    assert sorted(row["split"] for row in rows) == ["held_out", "train", "train", "train"]
    first = next(row for row in rows if row["prompt_id"] == "harmful 0")
    # The repeated answer is not ranked twice.
    assert (first["texts"], first["ranks"]) == (["Sure.", "No.", "Never."], [2, 1, 2])
    assert first["answers"] == [[7, 0], [7, 1], [7, 3]]
    with pytest.raises(UserError, match="no prompt 'harmful 0' with the answers \\[999, 1000\\]"):
        ranking_rows(
            recipe, run, Chat.of(run.path("sft")), [{"prompt": "harmful 0", "answers": [999, 1000], "ranks": [1, 2]}]
        )


@pytest.mark.parametrize("gameable", [False, True])
def test_a_visitor_trains_in_a_folder_of_their_own_on_half_of_the_cores(recipe: Recipe, tmp_path: Path, gameable: bool):
    own = visitor_recipe(recipe, RunFolder(tmp_path / "story"), 8, gameable)
    assert own.folder == tmp_path / "story"
    assert make_plan(own, Resources(8, 8, 0, 64)).trainer.cpus == 4
    # All its processes together leave the other half to the models that are served.
    plan = make_plan(own, Resources(8, 8, 0, 64))
    assert plan.rollout.cpus + plan.reward.cpus + plan.learner.cpus <= 4
    stages = [stage.folder for stage in stages_of(own) if stage.folder in OWN_STAGES]
    assert stages == (["policy"] if gameable else ["reward", "policy"])
    assert recipe.serve.story is not None
    assert own.rlhf.steps == recipe.serve.story.steps
    assert own.rlhf.stop.max_kl == 2.5
