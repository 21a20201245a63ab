"""Names of models, aliases and the share of a new policy on trial."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.serve import Alias
from cluster.run.folder import RunFolder
from serve.canary import CanaryShare, set_share
from serve.errors import RequestError
from serve.routes import Route, Routes, aliases_of
from tests.helpers import DEMO


def test_latest_is_the_model_that_came_furthest() -> None:
    assert aliases_of(["base", "sft", "reward"], {}) == {"latest": Alias(models={"sft": 1})}
    assert aliases_of(["base", "sft", "policy"], {}) == {"latest": Alias(models={"policy": 1})}
    assert aliases_of(["reward"], {}) == {}


def test_the_recipe_gives_more_names() -> None:
    words = ["serve.aliases.production=policy", "serve.aliases.trial={models: {policy: 0.9, sft: 0.1}, shadow: base}"]
    given = load_recipe(DEMO, words).serve.aliases
    assert given == {
        "production": Alias(models={"policy": 1}),
        "trial": Alias(models={"policy": 0.9, "sft": 0.1}, shadow="base"),
    }
    assert aliases_of(["base", "sft", "policy"], given).keys() == {"latest", "production", "trial"}
    with pytest.raises(UserError, match=r"serve.aliases.trial names base; the run has finished only sft, policy"):
        aliases_of(["sft", "policy"], given)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serve.aliases.policy=sft", "policy is the name of a model"),
        ("serve.aliases.production=polcy", "polcy"),
        ("serve.aliases.production={models: {policy: 0}}", "greater than 0"),
        ("serve.aliases.production={models: {}}", "at least 1"),
    ],
)
def test_wrong_aliases_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(DEMO, [override])


def test_requests_are_shared_out_as_the_alias_says() -> None:
    routes = Routes(["sft", "policy"], {"trial": Alias(models={"policy": 9, "sft": 1})}, random.Random(1))
    counts = Counter(routes.find("trial").model for _ in range(10_000))
    # Three deviations of a binomial of 10,000 draws with probability 0.1.
    assert abs(counts["sft"] - 1000) < 3 * (10_000 * 0.1 * 0.9) ** 0.5
    assert counts.total() == 10_000
    assert routes.find("sft") == Route("sft")
    with pytest.raises(RequestError, match="served are sft, policy, trial"):
        routes.find("base")


def test_a_new_policy_answers_its_share_of_the_requests_for_latest(tmp_path: Path) -> None:
    aliases, weights = aliases_of(["sft", "policy"], {"own": Alias(models={"policy": 1})}), {"canary": "new"}
    share, run = CanaryShare(tmp_path, weights), RunFolder(tmp_path)
    routes = Routes(["sft", "policy", "canary"], aliases, random.Random(1), share)
    ids = [f"id {n}" for n in range(10_000)]

    def chosen(name: str = "latest") -> set[str]:
        return {one for one in ids if routes.find(name, one).model == "canary"}

    assert not chosen()
    set_share(run, "new", 0.1)
    first = chosen()
    assert abs(len(first) - 1000) < 3 * (10_000 * 0.1 * 0.9) ** 0.5
    assert chosen() == first
    # A request that names a model or a version gets it.
    assert not chosen("policy") | chosen("own")
    assert routes.find("latest").model == "policy"
    # A larger share has the requests of a smaller one.
    set_share(run, "new", 0.2)
    assert chosen() > first
    # A server that has been started again has other weights there, until the loop has loaded them.
    weights["canary"] = "old"
    assert not chosen()
    weights["canary"] = "new"
    set_share(run, "new", 0.0)
    assert not chosen()
    set_share(run, "new", 0.5)
    without = Routes(["sft", "policy"], aliases, random.Random(1), share)
    assert {without.find("latest", one).model for one in ids} == {"policy"}
