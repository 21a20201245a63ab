"""The reference of the recipe: complete, and equal to infra/docs/recipe.md."""

import re

import pytest

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.recipe.reference import reference
from tests.demo_recipe import DEMO
from tests.helpers import ROOT

MINIMAL = {"name": "t", "model": {"start_from": "x"}, **DEMO}


def test_the_page_in_the_docs_is_up_to_date():
    page = ROOT / "infra" / "docs" / "recipe.md"
    assert page.read_text() == reference(), "run `triptych recipe > infra/docs/recipe.md`"


def test_every_key_is_described_once():
    keys = re.findall(r"^- `([\w.]+)` \(", reference(), flags=re.MULTILINE)
    assert len(keys) == len(set(keys)) > 150
    assert "): None" not in reference()
    assert {"seed", "training.epochs", "rlhf.stop.max_kl", "corpus.rules.c4.sentences", "sft.lora.rank"} <= set(keys)
    assert "pretrain.epochs" not in keys, "training's keys are listed once"


def test_a_section_or_key_is_printed_by_its_name():
    part = reference("rlhf.kl")
    assert part.startswith("- `rlhf.kl` (section; default below)")
    assert "- `rlhf.kl.coefficient` (number ≥ 0; default unset)" in part
    assert (
        reference("seed")
        == "- `seed` (integer ≥ 0; default 1): seed of every random draw; the same recipe and seed give the same\n"
        "  run\n"
    )


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("rlhf.kll", "did you mean rlhf.kl?"),
        ("max_kl", "did you mean rlhf.stop.max_kl?"),
        ("rlhf.max_kl", "did you mean rlhf.stop.max_kl?"),
        ("stop", "did you mean rlhf.stop?"),
        ("maxkl", "did you mean rlhf.stop.max_kl?"),
        ("temperature", "did you mean collect.temperature or rlhf.sampling.temperature?"),
        ("RLHF", "did you mean rlhf?"),
        ("nowhere", "it has name, seed, run"),
        ("seed.x", "seed has no keys inside"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_may_be_meant(place: str, message: str):
    with pytest.raises(UserError) as found:
        reference(place)
    assert str(found.value).startswith(f"the recipe has no key {place}: {message}")


def test_training_is_shared_by_the_sections_that_train_and_overridden_by_them():
    shared = {"training": {"learning_rate": 1e-4, "epochs": 3, "weight_decay": 0.5}}
    recipe = Recipe.model_validate({**MINIMAL, **shared, "reward": {"epochs": 5}, "dpo": {}})
    found = {name: getattr(recipe, name) for name in ("pretrain", "sft", "reward", "dpo")}
    assert [one.epochs for one in found.values()] == [3, 3, 5, 3]
    assert [one.learning_rate for one in found.values()] == [1e-4, 1e-4, 1e-4, 5e-5], "DPO's own default stays"
    assert [one.weight_decay for one in found.values()] == [0.5, 0.5, 0.5, 0.0]
