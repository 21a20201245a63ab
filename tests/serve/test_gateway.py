"""The HTTP surface, through the official client, against real engines."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.model.chat import Chat
from serve.application import is_healthy
from serve.replica.lora import adapter_checksum
from serve.server import APPLICATION
from tests.serve.conftest import ADMIN, CONTEXT, STYLES, Server, connection, head
from tests.serve.support.questions import ASK, MODEL, TOOLS

pytestmark = pytest.mark.slow
OTHER_TOOL = {"type": "function", "function": {"name": "clock"}}


def greedy(client: openai.OpenAI, **options):
    return client.chat.completions.create(model=MODEL, messages=ASK, temperature=0, max_tokens=12, **options)


def test_models_are_listed_with_what_they_are_for(client: openai.OpenAI) -> None:
    cards = {card.id: card.model_dump() for card in client.models.list()}
    assert list(cards) == ["base", "policy", "terse", "latest"]
    assert [cards[name]["chat"] for name in cards] == [False, True, False, True]
    assert cards["latest"] == cards["policy"] | {"id": "latest", "models": {"policy": 1.0}}
    assert client.models.retrieve("latest").model_dump() == cards["latest"]
    assert cards["policy"]["max_model_len"] == CONTEXT
    assert client.models.retrieve("base").id == "base"


def test_admins_see_how_the_replicas_are(server: Server) -> None:
    states = httpx.get(f"{server.url}/admin/replicas", headers=ADMIN).json()
    assert {name: state["status"] for name, state in states.items()} == dict.fromkeys(
        ("gateway", "gateway-1", "base-policy"), "HEALTHY"
    )


def test_models_answer_while_the_controller_is_dead(server: Server, client: openai.OpenAI) -> None:
    family = psutil.Process().children(recursive=True)
    (controller,) = (process for process in family if "ServeController" in " ".join(process.cmdline()))
    before = greedy(client).choices[0].message.content
    controller.kill()
    states, end = [is_healthy(APPLICATION)], time.monotonic() + 60
    while time.monotonic() < end and not (len(states) > 1 and states[-1]):
        assert greedy(client).choices[0].message.content == before
        time.sleep(0.5)
        states.append(is_healthy(APPLICATION))
    assert states[-1]
    assert httpx.get(f"{server.url}/admin/replicas", headers=ADMIN).status_code == 200


def test_readiness_reports_every_model(server: Server) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    # Clients of earlier tests may have gone a moment ago.
    assert wait_until(server, requests=0, seconds=60)
    response = httpx.get(f"{server.url}/ready")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "models": {name: {"status": "ok", "replicas": 1, "requests": 0} for name in ("base", "policy", "terse")},
    }


def test_greedy_answer_is_the_one_of_transformers(client: openai.OpenAI, server: Server) -> None:
    """The prompt's ids are those of the template, and the answer's those of an independent forward pass."""
    folder = server.folders[MODEL]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()

    answer = greedy(client, extra_body={"return_token_ids": True}).model_dump()

    assert answer["prompt_token_ids"] == prompt
    assert answer["choices"][0]["token_ids"] == ids
    assert len(set(ids)) > 3
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(ids, skip_special_tokens=True)
    assert answer["usage"] == answer["usage"] | {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}


@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_has_the_same_ids_in_training_and_in_serving(server: Server, style: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(server.folders["base"])
    tokenizer.chat_template, tokenizer.eos_token = STYLES[style]
    chat = Chat(tokenizer)
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " What is 東京?<|end|><|assistant|> "},
        {"role": "assistant", "content": "A city.\n\nIt is large."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Many live there."},
    ]

    def served(turns: list[dict[str, str]], answer_is_next: bool) -> list[int]:
        asked = {"model": "base", "messages": turns, "add_generation_prompt": answer_is_next}
        answer = httpx.post(f"{server.url}/tokenize", json={**asked, "chat_template_kwargs": {"style": style}})
        return answer.json()["tokens"]

    rendered = chat.conversation(talk)
    assert served(talk, answer_is_next=False) == rendered.token_ids
    trained = [token for token, flag in zip(rendered.token_ids, rendered.loss_mask, strict=True) if flag]
    assert trained.count(chat.end_of_turn_id) == 2
    for turn in (2, 4):
        prompt = served(talk[:turn], answer_is_next=True)
        assert prompt == chat.prompt(talk[:turn]) == rendered.token_ids[: len(prompt)]
        assert rendered.loss_mask[len(prompt)]
        assert not rendered.loss_mask[len(prompt) - 1]


def test_an_adapter_answers_as_the_model_with_it_merged(client: openai.OpenAI, server: Server) -> None:
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(server.folders["base"])
    prompt = tokenizer.encode("The capital of Peru")
    plain, other = (
        AutoModelForCausalLM.from_pretrained(server.folders["base"], dtype=torch.float32) for _ in ("base", "terse")
    )
    expected = {}
    for name, model in (("base", plain), ("terse", PeftModel.from_pretrained(other, server.folders["terse"]))):
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        expected[name] = model.generate(input_ids=torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    assert expected["base"] != expected["terse"]
    for name, ids in expected.items():
        body = {"return_token_ids": True, "ignore_eos": True}
        ask = {"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0}
        answer = client.completions.with_raw_response.create(**ask, extra_body=body)
        assert answer.parse().model_dump()["choices"][0]["token_ids"] == ids
        assert answer.headers["x-triptych-model"] == name
        if name == "terse":
            assert answer.headers["x-triptych-weights"] == adapter_checksum(server.folders["terse"])
    assert client.models.retrieve("terse").model_dump()["parent"] == "base"


def test_models_differ(client: openai.OpenAI) -> None:
    texts = [
        client.completions.create(model=m, prompt="The", temperature=0, max_tokens=8).choices[0].text
        for m in ("base", "policy")
    ]
    assert texts[0] != texts[1]


def test_streaming_equals_not_streaming(client: openai.OpenAI) -> None:
    whole = greedy(client)
    chunks = list(greedy(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3
    finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert finish == [whole.choices[0].finish_reason]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].choices == []


def test_completions_stream_and_echo(client: openai.OpenAI) -> None:
    ask = {"model": "base", "prompt": "The capital of", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**ask).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)) == whole
    assert client.completions.create(**ask, echo=True).choices[0].text == "The capital of" + whole


def test_stop_ends_before_the_word(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="base", prompt="The", temperature=0, max_tokens=16).choices[0].text
    stop = whole[4:6]
    cut = client.completions.create(model="base", prompt="The", temperature=0, max_tokens=16, stop=[stop]).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_several_answers_and_seed(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": ASK, "temperature": 1.0, "max_tokens": 12, "n": 3, "seed": 7}
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert first.usage.completion_tokens <= 36


def test_a_seed_is_safe_where_a_step_cannot_read_all_prompts(client: openai.OpenAI) -> None:
    prompts = [[20 + number] * 1000 for number in range(5)]
    ask: dict[str, Any] = {"model": "base", "prompt": prompts, "max_tokens": 4, "temperature": 1.0, "seed": 7}
    first, second = (client.completions.create(**ask) for _ in range(2))
    assert len(first.choices) == len(prompts)
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]


def test_logprobs_are_of_the_sampled_tokens(client: openai.OpenAI) -> None:
    tokens = greedy(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(max(top.logprob for top in token.top_logprobs))
        assert token.logprob < 0


@pytest.mark.anyio
async def test_the_asynchronous_client_streams_and_stops(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
        ask = {"model": MODEL, "prompt": "The", "temperature": 0}
        whole = (await client.completions.create(**ask, max_tokens=12)).choices[0].text
        pieces = [
            chunk.choices[0].text async for chunk in await client.completions.create(**ask, max_tokens=12, stream=True)
        ]
        assert "".join(pieces) == whole
        endless = await client.completions.create(**ask, max_tokens=2000, stream=True, extra_body={"ignore_eos": True})
        await anext(aiter(endless))
        await endless.close()
    assert wait_until(server, requests=0, seconds=1)


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-99", messages=ASK)
    assert caught.value.body["message"] == "the model `gpt-99` is not served; served are base, policy, terse, latest"
    assert (caught.value.body["param"], caught.value.body["code"]) == ("model", 404)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b"{}", 400, "field `model`"),
        (json.dumps({"model": MODEL}).encode(), 400, "messages"),
        (json.dumps({"model": MODEL, "messages": ASK, "temperature": "hot"}).encode(), 400, "temperature"),
        (json.dumps({"model": MODEL, "messages": ASK, "temperature": -1}).encode(), 400, "temperature"),
        (json.dumps({"model": MODEL, "messages": ASK, "max_tokens": 0}).encode(), 400, "max_tokens"),
        (json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Lima " * 3000}]}).encode(), 400, "2048"),
        (json.dumps({"model": MODEL, "messages": ASK, "stream": True, "top_p": 7}).encode(), 400, "top_p"),
        # vLLM looks into these before it has checked their types.
        (json.dumps({"model": MODEL, "messages": ASK, "structured_outputs": [None]}).encode(), 400, "wrong type"),
        (json.dumps({"model": MODEL, "messages": ASK, "structured_outputs": 5}).encode(), 400, "wrong type"),
        (
            json.dumps({"model": MODEL, "messages": ASK, "tools": TOOLS, "tool_choice": OTHER_TOOL}).encode(),
            400,
            "tool",
        ),
    ],
)
def test_wrong_requests_are_openai_errors(server: Server, body: bytes, status: int, words: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, status)
    assert words in error["message"]
    assert "\n" not in error["message"].strip()


def test_other_content_types_are_refused(server: Server) -> None:
    body = json.dumps({"model": MODEL, "messages": ASK})
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"})
    assert response.status_code == 415


def test_unknown_paths_are_openai_errors(server: Server) -> None:
    response = httpx.get(f"{server.url}/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, 404)
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def requests_in_engine(server: Server) -> int:
    return httpx.get(f"{server.url}/ready").json()["models"][MODEL]["requests"]


def wait_until(server: Server, requests: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if requests_in_engine(server) == requests:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_stops_when_the_client_goes(server: Server, stream: bool) -> None:
    """A second request measures the engine's progress, however busy the machine is: it ends at two thirds of the tokens
    of the abandoned request, and is still in progress when that one is gone."""
    long = {"model": MODEL, "prompt": "The", "ignore_eos": True}
    kept = long | {"n": 2, "max_tokens": 1000, "stream": True}
    abandoned = json.dumps(long | {"n": 4, "max_tokens": 1500, "stream": stream}).encode()
    with httpx.stream("POST", f"{server.url}/v1/completions", json=kept, timeout=60) as response:
        # The variable keeps the response open: httpx closes it with the generator.
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        with connection(server, head(len(abandoned)) + abandoned) as client:
            if stream:
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
            assert wait_until(server, requests=6, seconds=60)
        assert wait_until(server, requests=2, seconds=60)
    assert wait_until(server, requests=0, seconds=60)


def test_requests_of_clients_that_disconnect_at_once_leave_the_engine(server: Server) -> None:
    """vLLM 0.32 does not abort a request whose client goes while the request is being handed to the engine."""
    chance = random.Random(1)
    body = {"model": MODEL, "prompt": "The", "max_tokens": 1000, "ignore_eos": True}
    waits = [chance.uniform(0.001, 0.03) for _ in range(80)]
    with httpx.Client(base_url=server.url) as client, ThreadPoolExecutor(8) as threads:

        def go_at_once(number: int) -> None:
            with suppress(httpx.TimeoutException):
                soon = httpx.Timeout(5, read=waits[number])
                client.post("/v1/completions", json=body | {"stream": number % 2 == 0}, timeout=soon)

        list(threads.map(go_at_once, range(len(waits))))
    assert wait_until(server, requests=0, seconds=60)
