"""Recipes of the version before are read with their meaning, with a line for every renamed key."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.recipe.renamed import RENAMED, with_new_names

OLD = """
name: demo
corpus:
  sources: [{kind: countries, near_duplicates: keep, licence: MIT}, {kind: randfacts, limit: 1200}]
  survivor: source
  maximum_bad_share: 0.5
pretrain: {optimiser: muon, minimum_rate_share: 0.1, maximum_gradient_norm: 2.0}
sft: {sources: [{kind: guide}], misbehaviour_share: 0.5}
collect: {sources: [{kind: guide}], labeller: code, label_noise: 0.1, minimum_rankings: 7}
reward: {labeller_weights: {ann: 2.0}}
rlhf: {samples_per_prompt: 4, kl_coefficient: 0.1, kl_budget: 3, most_rollout_actors: 3, max_staleness: 1}
loop: {minimum_new: 9}
"""
NEW = {
    "name": "demo",
    "corpus": {
        "sources": [
            {
                "kind": "function",
                "function": "pipelines.demo.facts:country_documents",
                "name": "countries",
                "near_duplicates": "keep",
                "license": "MIT",
            },
            {
                "kind": "function",
                "function": "pipelines.corpus.read.packages:random_facts",
                "name": "randfacts",
                "limit": 1200,
            },
        ],
        "keep_policy": "source",
        "max_bad_share": 0.5,
    },
    "pretrain": {"optimizer": "muon", "min_rate_share": 0.1, "max_gradient_norm": 2.0},
    "sft": {
        "sources": [
            {
                "kind": "function",
                "function": "pipelines.demo.conversations:conversations",
                "arguments": {"misbehavior_share": 0.5},
            }
        ]
    },
    "collect": {
        "sources": [{"kind": "function", "function": "pipelines.demo.questions:prompts"}],
        "annotator": {"function": "pipelines.demo.annotator:annotate", "arguments": {"noise": 0.1}},
        "min_rankings": 7,
    },
    "reward": {"annotator_weights": {"ann": 2.0}},
    "rlhf": {
        "sampling": {"samples_per_prompt": 4},
        "kl": {"coefficient": 0.1},
        "stop": {"max_kl": 3.0},
        "fleet": {"max_rollout_actors": 3, "max_staleness": 1},
    },
    "loop": {"min_new": 9},
    "evaluate": {"exam": {"function": "pipelines.demo.exam:exam"}},
}


def test_a_recipe_of_the_version_before_keeps_its_meaning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    found = load_recipe(tmp_path / "old.yaml", ["rlhf.minimum_entropy=0.5"])
    assert found == Recipe.model_validate(NEW | {"rlhf": NEW["rlhf"] | {"stop": {"max_kl": 3.0, "min_entropy": 0.5}}})
    output = capsys.readouterr().err
    assert "rlhf.kl_budget is called rlhf.stop.max_kl now; the old name works in this version only" in output
    assert "collect.labeller is called collect.annotator now" in output
    assert "loop.minimum_new is called loop.min_new now" in output
    assert len(output.splitlines()) == 23


def test_todays_names_are_left_unchanged() -> None:
    assert with_new_names(NEW) == (NEW, {})


def test_every_new_name_is_a_key_of_the_recipe() -> None:
    model = Recipe.model_json_schema()
    for new in RENAMED.values():
        path = tuple(part for part in new.split(".") if part != "*")
        properties, known = model["properties"], model["$defs"]
        for name in path:
            assert name in properties, f"{new} names no key"
            text = str(properties[name])
            inner = [kind for kind in known if f"'#/$defs/{kind}'" in text]
            properties = known[inner[0]].get("properties", {}) if inner else {}


def test_a_key_with_both_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(OLD + "\n")
    with pytest.raises(UserError, match=r"unknown key 'rlhf\.kl_budget'"):
        load_recipe(tmp_path / "both.yaml", ["rlhf.stop.max_kl=2"])
