"""The reference of the recipe: whole, and the same as the page in the documents."""

import re

import pytest

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.recipe.reference import reference
from tests.helpers import ROOT
from tests.world import DEMO

MINIMAL = {"name": "t", "model": {"start_from": "x"}, **DEMO}


def test_the_page_in_the_documents_is_the_reference_of_today():
    page = ROOT / "infra" / "docs" / "recipe.md"
    assert page.read_text() == reference(), "run `triptych recipe > infra/docs/recipe.md`"


def test_every_key_has_a_meaning_and_is_there_once():
    keys = re.findall(r"^- `([\w.]+)` \(", reference(), flags=re.MULTILINE)
    assert len(keys) == len(set(keys)) > 150
    assert "): None" not in reference()
    assert {"seed", "training.epochs", "rlhf.stop.max_kl", "corpus.rules.c4.sentences", "sft.lora.rank"} <= set(keys)
    assert "pretrain.epochs" not in keys, "training's keys are listed once"


def test_a_part_is_printed_by_its_name():
    part = reference("rlhf.kl")
    assert part.startswith("- `rlhf.kl` (section; default below)")
    assert "- `rlhf.kl.coefficient` (number ≥ 0; default 0.02)" in part
    assert (
        reference("seed")
        == "- `seed` (integer ≥ 0; default 1): seed of every random draw; the same recipe and seed give the same\n"
        "  run\n"
    )


@pytest.mark.parametrize("place", ["rlhf.kll", "nowhere", "seed.x"])
def test_a_place_that_is_not_there_is_refused_with_what_is(place: str):
    with pytest.raises(UserError, match=f"no key {place}"):
        reference(place)


def test_what_the_sections_that_train_share_is_said_once_and_overridden_where_it_differs():
    shared = {"training": {"learning_rate": 1e-4, "epochs": 3, "weight_decay": 0.5}}
    recipe = Recipe.model_validate({**MINIMAL, **shared, "reward": {"epochs": 5}, "dpo": {}})
    found = {name: getattr(recipe, name) for name in ("pretrain", "sft", "reward", "dpo")}
    assert [one.epochs for one in found.values()] == [3, 3, 5, 3]
    assert [one.learning_rate for one in found.values()] == [1e-4, 1e-4, 1e-4, 5e-5], "DPO's own default stays"
    assert [one.weight_decay for one in found.values()] == [0.5, 0.5, 0.5, 0.0]
