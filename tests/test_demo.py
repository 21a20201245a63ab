"""The whole loop on real engines, small enough for a test."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cluster.metrics import read_metrics
from cluster.recipe import load_recipe
from cluster.run import RunFolder, file_fingerprint
from cluster.stages import STAGES, run_stage

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "infra" / "recipes" / "demo.yaml"
SMALL = [
    "model.hidden=64",
    "model.layers=2",
    "model.vocabulary=1024",
    "corpus.sources.0.limit=1500",
    "corpus.sources.1.limit=100",
    "pretrain.epochs=1",
    "pretrain.checkpoint_every=10",
    "sft.epochs=1",
    "collect.prompts=40",
    "reward.epochs=1",
    "rlhf.steps=3",
    "rlhf.prompts_per_step=4",
    "rlhf.samples_per_prompt=4",
    "rlhf.checkpoint_every=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs") / "small"
    recipe = load_recipe(RECIPE, [*SMALL, f"run={folder}"])
    run = RunFolder(recipe.folder)
    assert [run_stage(stage, recipe, run) for stage in STAGES] == ["done"] * len(STAGES)
    return run


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_stage_leaves_a_whole_artefact(finished: RunFolder):
    for stage in STAGES:
        manifest = finished.require(stage.folder, stage.name)
        assert set(manifest.inputs) == set(stage.after)
    for name in ("base", "sft", "policy"):
        model = AutoModelForCausalLM.from_pretrained(finished.path(name))
        assert model.config.hidden_size == 64
        assert finished.require(name, name).weights == file_fingerprint(finished.path(name) / "model.safetensors")
    reward = AutoModelForSequenceClassification.from_pretrained(finished.path("reward"))
    assert reward.config.num_labels == 1
    assert not list((finished.root / ".partial").iterdir())


@pytest.mark.slow
def test_the_report_has_every_figure_with_its_interval(finished: RunFolder):
    report = json.loads((finished.path("report") / "report.json").read_text())
    sizes = {"capital_accuracy": 40, "harmful_compliance": 50, "over_refusal": 50, "misconception_rate": 30}
    for model in ("base", "sft", "policy"):
        for name, least in {**sizes, "stop_rate": 200}.items():
            figure = report[model][name]
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
            assert figure["n"] >= least
    assert report["reward_model"]["pair_accuracy"]["n"] > 0
    assert report["kl_from_sft"]["n"] == report["policy"]["stop_rate"]["n"]
    assert set(report["timings"]) == {stage.name for stage in STAGES}
    assert report["seed"] == 1


@pytest.mark.slow
def test_reinforcement_is_on_policy_and_every_prompt_is_booked(finished: RunFolder):
    rows = read_metrics(finished.path("policy"))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["version"] for row in rows] == [1, 2, 3]
    # The engines' log-probabilities are those of the learner's weights, and of the newest version.
    assert max(row["behaviour_gap"] for row in rows) < 1e-3
    assert {row["staleness"] for row in rows} == {0.0}
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert finished.require("policy", "rlhf").metrics["prompts"] == {"trained": 12, "filtered": 0, "failed": 0}
