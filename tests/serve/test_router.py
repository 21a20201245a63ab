"""The names of models: aliases, shares and shadows."""

import asyncio
import random
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest

from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.serve import Alias
from cluster.run.folder import RunFolder
from serve.canary import CanaryShare, set_share
from serve.errors import RequestError
from serve.gateway import Settings
from serve.router import Route, Routes, aliases_of
from tests.helpers import DEMO
from tests.serve.support.local import Parrot, asking, prompt

WELL = 'route="/v1/completions",status="200",weights="unknown"'
SHADOWED = Settings(aliases={"production": Alias(models={"policy": 1}, shadow="sft")})


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
    routes, ids = (
        Routes(["sft", "policy", "canary"], aliases, random.Random(1), share),
        [f"id {n}" for n in range(10_000)],
    )

    def chosen(name: str = "latest") -> set[str]:
        return {one for one in ids if routes.find(name, one).model == "canary"}

    assert not chosen()
    set_share(run, "new", 0.1)
    first = chosen()
    assert abs(len(first) - 1000) < 3 * (10_000 * 0.1 * 0.9) ** 0.5
    assert chosen() == first
    # Whoever names a model or a version gets that.
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


@pytest.mark.anyio
async def test_answers_of_a_new_policy_say_so(tmp_path: Path) -> None:
    settings = Settings(tmp_path, aliases=aliases_of(["policy"], {}), weights={"canary": "new", "policy": "old"})
    tried = Parrot()
    set_share(RunFolder(tmp_path), "new", 0.5)
    async with asking(settings, name="policy", others={"canary": tried}) as client:
        answers = [await client.post("/v1/completions", json=prompt("a b", model="latest")) for _ in range(64)]
    said = Counter((one.headers["x-triptych-model"], one.headers["x-triptych-weights"]) for one in answers)
    assert said.keys() == {("policy", "old"), ("canary", "new")}
    assert tried.ended == said["canary", "new"] > 8


async def metrics(client: httpx.AsyncClient, wanted: str) -> str:
    """Returns the metrics once they contain a line; the shadow answers later than the model."""
    async with asyncio.timeout(10):
        while wanted not in (text := (await client.get("/metrics")).text):
            await asyncio.sleep(0.01)
    return text


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_shadow_is_asked_too_and_counted_apart(stream: bool) -> None:
    seen, shadow = Parrot(), Parrot()
    async with asking(SHADOWED, seen, name="policy", others={"sft": shadow}) as client:
        answer = await client.post("/v1/completions", json=prompt("a b", model="production", stream=stream))
        line = f'triptych_requests_total{{key="(shadow)",model="sft",{WELL}}} 1.0'
        text = await metrics(client, line)
    assert (answer.status_code, answer.headers["x-triptych-model"]) == (200, "policy")
    assert (seen.ended, shadow.ended) == (1, 1)
    assert f'triptych_requests_total{{key="",model="policy",{WELL}}} 1.0' in text
    assert f'kind="completion",model="sft",weights="unknown"}} {7 if stream else 2}.0' in text
    assert (
        'triptych_time_to_first_token_seconds_count{key="(shadow)",model="sft",weights="unknown"} 1.0' in text
    ) == stream


@pytest.mark.anyio
async def test_a_shadow_that_hangs_or_fails_is_in_nobodys_way() -> None:
    shadow = Parrot()

    class Slow(Parrot):
        """A model that never answers."""

        async def answer(self, endpoint, body, given_up):
            async for part in shadow.answer(endpoint, body | {"prompt": "wait"}, given_up):
                yield part

    settings = Settings(aliases=SHADOWED.aliases, max_concurrent=1)
    async with asking(settings, name="policy", others={"sft": Slow()}) as client:
        for _ in range(2):
            answer = await client.post("/v1/completions", json=prompt("a b", model="production"))
            assert answer.status_code == 200
        # The second found no free slot of the shadow.
        await metrics(client, 'key="(shadow)",model="sft",route="/v1/completions",status="503",weights="unknown"} 1.0')
        shadow.go_on.set()
        await metrics(client, f'key="(shadow)",model="sft",{WELL}}} 1.0')
