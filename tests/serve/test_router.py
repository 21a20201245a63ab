"""Requests to aliases: shadow models, and the headers that name the model and its weights."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter

from cluster.recipe.serve import Alias
from cluster.run.folder import RunFolder
from serve.canary import set_share
from serve.errors import RequestError
from serve.gateway import GatewaySettings
from serve.replica.vllm_engine import known_fields
from serve.routes import aliases_of
from serve.transport.messages import ResponseStart
from tests.serve.support.local import Parrot, asking, prompt

WELL = 'route="/v1/completions",status="200",weights="unknown"'
SHADOWED = GatewaySettings(aliases={"production": Alias(models={"policy": 1}, shadow="sft")})


@pytest.mark.anyio
async def test_answers_of_a_new_policy_say_so(tmp_path: Path) -> None:
    settings = GatewaySettings(tmp_path, aliases=aliases_of(["policy"], {}), weights={"canary": "new", "policy": "old"})
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
async def test_a_shadow_that_hangs_or_fails_delays_no_request() -> None:
    shadow = Parrot()

    class Slow(Parrot):
        """A model that never answers."""

        async def answer(self, endpoint, body, given_up):
            async for part in shadow.answer(endpoint, body | {"prompt": "wait"}, given_up):
                yield part

    settings = GatewaySettings(aliases=SHADOWED.aliases, max_concurrent=1)
    async with asking(settings, name="policy", others={"sft": Slow()}) as client:
        for _ in range(2):
            answer = await client.post("/v1/completions", json=prompt("a b", model="production"))
            assert answer.status_code == 200
        # The second found no free slot of the shadow.
        await metrics(client, 'key="(shadow)",model="sft",route="/v1/completions",status="503",weights="unknown"} 1.0')
        shadow.go_on.set()
        await metrics(client, f'key="(shadow)",model="sft",{WELL}}} 1.0')


@pytest.mark.anyio
async def test_fields_that_a_model_does_not_know_are_named_in_a_header() -> None:
    class Strict(Parrot):
        """A model that knows the fields of `prompt` alone."""

        async def answer(self, endpoint, body, given_up):
            yield ResponseStart("abc", sorted(set(body) - {"model", "prompt", "stream"}), "it continues texts")
            async for part in super().answer(endpoint, body, given_up):
                yield part

    async with asking(GatewaySettings(), Strict()) as client:
        plain = await client.post("/v1/completions", json=prompt("a b"))
        for stream in (False, True):
            options = {"temprature": 0.5, "a\r\nSet-Cookie: é": 1, "stream": stream}
            answer = await client.post("/v1/completions", json=prompt("a b", **options))
            assert answer.status_code == 200
            assert answer.headers["x-triptych-ignored-fields"] == "a%0D%0ASet-Cookie%3A%20%C3%A9, temprature"
            assert answer.headers["x-triptych-weights"] == "abc"
    assert "x-triptych-ignored-fields" not in plain.headers
    assert plain.headers["x-triptych-note"] == "it continues texts"


def test_the_fields_of_a_request_are_those_of_all_its_alternatives() -> None:
    class One(BaseModel):
        prompt: str

    class Other(BaseModel):
        messages: list[One]

    assert known_fields(TypeAdapter(One).json_schema()) == {"prompt"}
    assert known_fields(TypeAdapter(One | Other).json_schema()) == {"prompt", "messages"}
    assert known_fields(TypeAdapter(dict[str, int]).json_schema()) == set()


@pytest.mark.anyio
async def test_readiness_tells_a_model_that_loads_from_one_that_is_gone() -> None:
    class Silent(Parrot):
        """A model without replicas that answer."""

        silent = True

        async def requests(self) -> list[int]:
            if self.silent:
                raise RequestError(503, "no", "ServiceUnavailableError")
            return [0]

    model = Silent()
    async with asking(GatewaySettings(), model, others={"sft": Parrot()}) as client:

        async def ready() -> tuple[int, str, str]:
            answer = await client.get("/ready")
            assert answer.json()["models"]["sft"]["status"] == "ok"
            return answer.status_code, answer.json()["status"], answer.json()["models"]["parrot"]["status"]

        assert await ready() == (503, "loading", "loading")
        model.silent = False
        assert await ready() == (200, "ok", "ok")
        model.silent = True
        assert await ready() == (503, "unhealthy", "unreachable")
