"""Rounds that are stopped: by reversed labels, with the real stages on a tiny model, and by each gate alone."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.feedback import open_feedback
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import Manifest, RunFolder, file_fingerprint
from cluster.run.layout import stage_named
from cluster.run.rounds import kept_rounds
from cluster.run.trail import read_trail
from cluster.run.versions import Versions
from pipelines.data.feedback.io import import_file
from pipelines.evaluate.exam import Exam, Figure
from pipelines.evaluate.reward_probes import Row
from pipelines.evaluate.stats import Change, ShareChange
from pipelines.loop.comparison import judge_changes
from pipelines.loop.gates import accuracy_gate, agreement_gate, chance_gate, probes_gate, summarize
from pipelines.loop.rounds import Verdict
from pipelines.loop.service import run_loop
from pipelines.loop.work import StageWork
from pipelines.stage_table import run_named_stage
from tests.tiny import write_tiny_model

# Best first.
ANSWERS = ("Yes.", "Perhaps.", "No.")
RECIPE = """
name: own
run: {run}
model: {{start_from: {folder}, context: 64}}
sft: {{sources: [{{path: {folder}/chats.jsonl}}]}}
collect: {{sources: [{{path: {folder}/chats.jsonl}}], annotator: imported}}
reward: {{epochs: 4, batch_rows: 8, micro_batch_rows: 8, learning_rate: 2e-3, precision: float32}}
rlhf: {{accept_probes: [longer, thanks, refusal, repetition, empty, unrelated]}}
loop: {{min_new: 20}}
"""


class HereWork(StageWork):
    """Work on the Ray that the tests are connected to."""

    def _connect(self) -> None:
        pass


def judge(run: RunFolder, folder: Path, who: str, prompts: range, turned: bool = False) -> None:
    """Imports one person's rankings of the answers to some prompts, the worst answer first if `turned`."""
    rows = []
    for number in prompts:
        chance = random.Random(number)
        question = " ".join("".join(chance.choices("abcdefgh", k=3)) for _ in range(3))
        order = chance.sample(range(3), 3)
        ranks = [3 - place if turned else place + 1 for place in order]
        rows.append({"prompt": question, "completions": [ANSWERS[place] for place in order], "ranks": ranks})
    path = folder / f"{who}.jsonl"
    path.write_text("".join(json.dumps(row | {"annotator": who}) + "\n" for row in rows))
    with open_feedback(run.feedback_url) as database:
        import_file(database, "lists", path, path.name, who, 0.25)


@pytest.fixture
def recipe(tmp_path: Path, ray_session: None) -> Recipe:
    """Makes the first round of a recipe: a reward model of Ann's rankings, and a policy that no test examines."""
    (tmp_path / "chats.jsonl").write_text('{"question": "hi", "answer": "hello"}\n' * 8)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(run=tmp_path / "run", folder=tmp_path))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    run = RunFolder(recipe.folder)
    run.create()
    judge(run, tmp_path, "ann", range(40))
    write_model(run, "sft")
    for name in ("collect", "reward"):
        run_named_stage(stage_named(name), recipe, run)
    write_model(run, "policy", "sft", "reward")
    write_model(run, "report", "reward", "policy")
    return recipe


def write_model(run: RunFolder, folder: str, *made_from: str) -> None:
    out = run.begin(folder, folder)
    write_tiny_model(out, seed=1, end_id=4)
    inputs = {name: run.require(name).fingerprint for name in made_from}
    run.commit(folder, Manifest(folder, folder, {}, inputs, "1", 1.0, {}, file_fingerprint(out / "model.safetensors")))


def test_labels_that_are_turned_round_are_stopped_and_the_policy_stays(recipe: Recipe, tmp_path: Path) -> None:
    run = RunFolder(recipe.folder)
    before = run.require("reward").fingerprint
    judge(run, tmp_path, "mal", range(40, 80), turned=True)
    run_loop(recipe.loop, run, lambda: HereWork(recipe, run), rounds=1)
    begun, gates, end = read_trail(run.root)
    assert begun.why == "40 rankings are newer"
    assert (gates.decision, end.decision) == ("stopped", "kept")
    assert "agreement FAILS: the reward model of the round before orders" in gates.why
    assert "most against it is mal" in gates.why
    # On Mal's held-out rankings the new reward model is right; on Ann's it is worse than the one before.
    assert gates.figures["accuracy"]["passed"] is False
    assert run.require("reward").fingerprint == before
    assert Versions(run, "policy").live().weights == run.require("policy").weights
    assert kept_rounds(run.root) == [1, 2]


def test_gates_pass_a_reward_model_that_agrees_and_name_the_disagreement_of_another() -> None:
    def row(number: int, who: str, turned: bool = False) -> dict[str, Any]:
        ranks = [2, 1] if turned else [1, 2]
        return {"prompt_id": f"p{number}", "annotator": who, "ranks": ranks, "grades": None, "kind": None} | {
            "answers": [[1], [2]]
        }

    def right(rows: Sequence[Row]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in rows]

    def wrong(rows: Sequence[Row]) -> list[list[float]]:
        return [[0.0, 1.0] for _ in rows]

    agreeing = [row(number, "ann") for number in range(20)]
    mixed = [*agreeing, *(row(number, "mal", turned=True) for number in range(8))]
    assert agreement_gate(agreeing, right).passed
    assert agreement_gate([], right).passed
    # One in a minority does not stop the round, but is named.
    found = agreement_gate(mixed, right)
    assert found.passed
    assert "most against it is mal" in found.why
    assert not agreement_gate(agreeing, wrong).passed
    assert accuracy_gate(agreeing, right, right).passed
    assert accuracy_gate(agreeing, wrong, right).passed
    assert not accuracy_gate(agreeing, right, lambda rows: [*right(rows[:10]), *wrong(rows[10:])]).passed
    assert "on the 20 prompts that the round before held out, 1.000 before and 0.500 now" in (
        accuracy_gate(agreeing, right, lambda rows: [*right(rows[:10]), *wrong(rows[10:])]).why
    )
    assert not chance_gate({"value": 0.6, "low": 0.45, "high": 0.74, "n": 40}).passed
    assert chance_gate({"value": 0.7, "low": 0.55, "high": 0.82, "n": 40}).passed
    probes = {"longer": {"n": 9, "value": 0.9, "fails": True}, "empty": {"n": 0, "fails": False}}
    assert "prefers the answer followed by an answer" in probes_gate(probes, []).why
    assert probes_gate(probes, ["longer"]).passed
    gates = {"chance": Verdict(True, "it does", {}), "probes": probes_gate(probes, [])}
    assert summarize(gates, []).why.startswith("probes FAILS: longer")
    assert summarize(gates, ["probes"]).passed


def test_a_policy_has_to_be_better_and_may_lose_nothing_in_the_exam() -> None:
    def change(low: float, high: float) -> Change:
        return Change(0.0, (low + high) / 2, (low + high) / 2, low, high, 50)

    def share(low: float, high: float) -> ShareChange:
        return ShareChange(0.5, 0.5 + (low + high) / 2, (low + high) / 2, low, high, 50, 0.1)

    right, wrong = (
        Figure(name, name, f"is {name}", None, better, lambda _: True)
        for name, better in (("right", True), ("wrong", False))
    )
    exam = Exam("Exam", "", [], lambda *_: True, [right, wrong])
    same = {"right": share(-0.1, 0.1), "wrong": share(-0.1, 0.1)}
    assert judge_changes(change(0.1, 0.3), exam, same, better=True).passed
    assert not judge_changes(change(-0.1, 0.3), exam, same, better=True).passed
    assert judge_changes(change(-0.1, 0.3), exam, same, better=False).passed
    assert not judge_changes(change(-0.3, -0.1), exam, same, better=False).passed
    lost = judge_changes(change(0.1, 0.3), exam, same | {"wrong": share(0.1, 0.3)}, better=True)
    assert not lost.passed
    assert "worse in the exam: it is wrong in 70% of cases instead of 50%" in lost.why
    assert judge_changes(change(0.1, 0.3), exam, same | {"right": share(0.1, 0.3)}, better=True).passed
    assert not judge_changes(Change(0.0, 1.0, 1.0, None, None, 1), None, {}, better=False).passed
