"""RLHF measures its policy on held-out prompts on the way, and keeps the best one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.model.causal_lm import load
from actors.model.chat import Chat
from actors.types import RewardInput
from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.section import Rlhf
from cluster.run.folder import SCRATCH, Manifest, RunFolder
from cluster.run.layout import stages_of
from cluster.run.metrics import read_metrics
from pipelines.data.prompts import all_prompts, select_prompts
from pipelines.rlhf.evaluation import Evaluation, evaluation_prompts, held_out_summary
from pipelines.rlhf.setup import held_out_prompts, training_prompts
from pipelines.stage_table import run_named_stage
from tests.tiny import write_tiny_model

END = 4


def letters(question: RewardInput, answer: str) -> float:
    """Returns the share of lower-case letters; fails on one prompt."""
    if question.text == "question 9":
        raise ValueError("no verdict on nine")
    return sum(one.islower() for one in answer) / max(1, len(answer))


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    rows = [{"question": f"question {number}", "answer": "a"} for number in range(12)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = f"{{sources: [{{kind: files, path: {folder / 'chats.jsonl'}}}]}}"
    (folder / "recipe.yaml").write_text(
        f"name: own\nrun: {folder / 'run'}\nmodel: {{start_from: {folder}, context: 64}}\nsft: {sources}\n"
        f"collect: {sources}\nevaluate: {{prompts: 2}}\nrlhf:\n"
        f"  rewards: [{{kind: function, function: '{__name__}:letters', accept_hacks: [empty, echo], attempts: 1}}]\n"
        "  steps: 3\n  prompts_per_step: 2\n  learning_rate: 1.0e-3\n"
        "  sampling: {samples_per_prompt: 2, max_tokens: 6}\n"
        "  fleet: {rollout_actors: 1}\n  evaluate_every: 2\n  evaluation_prompts: 5\n  keep: best\n"
    )
    return load_recipe(folder / "recipe.yaml", ["collect.prompts=4", *overrides])


def test_prompts_to_choose_by_are_those_that_neither_rlhf_nor_the_report_uses(tmp_path: Path, capsys: Any) -> None:
    write_tiny_model(tmp_path, seed=1, end_id=END)
    recipe, chat = recipe_of(tmp_path), Chat.of(tmp_path)
    trained = set(training_prompts(recipe, chat).rendered)
    own = set(evaluation_prompts(recipe, chat).rendered)
    assert len(own) == 5
    assert not own & trained
    assert capsys.readouterr().out == ""
    # Four train, two are the report's, six are left.
    more = evaluation_prompts(recipe_of(tmp_path, "rlhf.evaluation_prompts=7"), chat)
    assert len(more.rendered) == 7
    assert set(more.rendered) >= own
    assert "1 of the 7 evaluation prompts are the report's too" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^12 prompts .*\(trained on 12\).*: lower collect\.prompts \(now 12\)"):
        evaluation_prompts(recipe_of(tmp_path, "collect.prompts=12"), chat)
    small = recipe_of(tmp_path, "rlhf.sampling.max_tokens=63", "collect.max_tokens=8")
    with pytest.raises(UserError, match=r"\(more than collect\.prompts 8, no room for an answer 4\)"):
        training_prompts(small, chat)
    with pytest.raises(UserError, match=r"\(trained on 4, no room for an answer 8\).*lower rlhf\.sampling\.max_tokens"):
        evaluation_prompts(small, chat)
    with pytest.raises(UserError, match="keep: best needs rewards on held-out prompts: set evaluate_every"):
        recipe_of(tmp_path, "rlhf.evaluate_every=null")


def test_rlhf_trains_on_the_prompts_of_its_own_sources_and_none_of_them_are_held_out(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, seed=1, end_id=END)
    # Questions 9 to 11 stand in the sources of collect too, in another layout and thus under other ids.
    rows = [{"prompt": f"question {number}", "answer": "b"} for number in range(9, 20)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = f"rlhf.sources=[{{path: {tmp_path / 'own.jsonl'}}}]"
    recipe, chat = recipe_of(tmp_path, source), Chat.of(tmp_path)
    trained = {one.text: one.metadata for one in training_prompts(recipe, chat).inputs.values()}
    assert trained == {f"question {number}": {"answer": "b"} for number in range(9, 20)}
    ranked = {text.messages[-1]["content"] for text, _ in select_prompts(recipe, chat, all_prompts(recipe))}
    held_out = {one.text for one in held_out_prompts(recipe, chat, None).inputs.values()}
    assert len(ranked) == 4
    assert held_out == {f"question {number}" for number in range(9)} - ranked
    with pytest.raises(UserError, match=r"^12 prompts of collect\.sources.*\(ranked or trained on 12\)"):
        evaluation_prompts(recipe_of(tmp_path, source, "collect.prompts=12"), chat)
    small = recipe_of(tmp_path, source, "rlhf.sampling.max_tokens=63")
    with pytest.raises(UserError, match=r"^11 prompts of rlhf\.sources.*\(no room for an answer 11\)"):
        training_prompts(small, chat)
    with pytest.raises(UserError, match=r"rlhf\.sources: .*of kind live are for collect\.sources"):
        recipe_of(tmp_path, "rlhf.sources=[{kind: live}]")


def test_the_best_policy_is_kept_across_checkpoints_and_restarts(tmp_path: Path) -> None:
    settings = Rlhf(evaluate_every=2, keep="best", steps=9)

    def export(version: int) -> Any:
        return lambda folder: (folder / "model.safetensors").write_text(str(version))

    evaluation = Evaluation(settings, [], 1, tmp_path)
    assert [step for step in range(9) if evaluation.due(step)] == [1, 3, 5, 7, 8]
    for version, reward in ((2, 0.1), (4, 0.5), (6, 0.3)):
        evaluation.keep_best(version, {"held_out_reward": reward}, export(version))
    saved = json.loads(json.dumps(evaluation.best))
    evaluation.prune()
    assert [path.name for path in (tmp_path / SCRATCH).iterdir()] == ["best_4"]
    # After the checkpoint, a better one; then a kill.
    evaluation.keep_best(8, {"held_out_reward": 0.9}, export(8))
    again = Evaluation(settings, [], 1, tmp_path)
    again.restore(saved)
    assert [path.name for path in (tmp_path / SCRATCH).iterdir()] == ["best_4"]
    again.keep_best(8, {"held_out_reward": 0.4}, export(8))
    assert again.write_best() == 4
    assert (tmp_path / "model.safetensors").read_text() == "4"
    lost = Evaluation(settings, [], 1, tmp_path / "elsewhere")
    lost.restore(saved)
    assert (lost.best, lost.write_best()) == (None, None)


def test_the_summary_names_the_kept_step_and_its_own_reward() -> None:
    rows = [
        {"held_out_reward_before": 0.1, "held_out_reward": 0.2},
        {},
        {"held_out_reward": 0.4, "held_out_reward_n": 9},
    ]
    assert held_out_summary(rows, 1) == {"held_out_reward_before": 0.1, "kept_step": 1, "held_out_reward": 0.2}
    assert held_out_summary(rows, 3)["held_out_reward_n"] == 9
    assert held_out_summary(rows, None) == {"held_out_reward_before": 0.1}


@pytest.mark.slow
def test_rlhf_measures_on_held_out_prompts_and_exports_the_best_policy(tmp_path: Path, ray_session: None) -> None:
    recipe = recipe_of(tmp_path)
    run, (stage,) = RunFolder(tmp_path / "run"), [one for one in stages_of(recipe) if one.folder == "policy"]
    write_tiny_model(run.begin("sft", "sft"), seed=1, end_id=END)
    run.commit("sft", Manifest("sft", "sft", {}, {}, "test", 0.0, {}, None))
    chat = Chat.of(run.path("sft"))
    names = {one.text for one in evaluation_prompts(recipe, chat).inputs.values()}
    assert run_named_stage(stage, recipe, run) == "done"
    rows, found = read_metrics(run.path("policy")), run.require("policy").metrics
    assert [("held_out_reward" in row, "held_out_reward_before" in row) for row in rows] == [
        (False, True),
        (True, False),
        (True, False),
    ]
    measured = {step: row for step, row in enumerate(rows, 1) if "held_out_reward" in row}
    for row in measured.values():
        failed = int("question 9" in names)
        assert (row["held_out_reward_n"], row["held_out_failed"]) == (5 - failed, failed)
        assert row["held_out_reward_low"] < row["held_out_reward"] < row["held_out_reward_high"]
    best = max(measured, key=lambda step: measured[step]["held_out_reward"])
    assert (found["kept_step"], found["held_out_reward"]) == (best, measured[best]["held_out_reward"])
    assert found["held_out_reward_before"] == rows[0]["held_out_reward_before"]
    weights = [load(run.path(folder)).get_input_embeddings().weight.detach().numpy() for folder in ("sft", "policy")]
    assert not np.array_equal(*weights)
    assert math.isfinite(float(np.abs(weights[1]).sum()))
    assert not (run.path("policy") / SCRATCH).exists()
