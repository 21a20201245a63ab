"""The APIs besides chat and completions, through their official clients, against real engines: OpenAI's responses,
Anthropic's messages, and the tokenizer's description for evaluation tools."""

import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel
from transformers import AutoTokenizer

from tests.serve.conftest import Server
from tests.serve.support.questions import PLACE
from tests.serve.test_exposed import tokens

pytestmark = pytest.mark.slow

MODEL = "policy"
QUESTION = "What is the capital of Peru?"
TURNS = [{"role": "user", "content": QUESTION}]
FUNCTION: Any = {"type": "function", "name": "weather", "parameters": PLACE, "strict": True}
TOOL: Any = {"name": "weather", "description": "the weather", "input_schema": PLACE}


class Capital(BaseModel):
    """The schema that an answer is forced into."""

    city: Literal["Lima", "Quito"]


def chatted(client: openai.OpenAI) -> openai.types.chat.ChatCompletion:
    """Returns the answer of the chat API, which the others have to give too."""
    return client.chat.completions.create(model=MODEL, messages=TURNS, temperature=0, max_tokens=12)


def used(server: Server, before: dict[str, float]) -> tuple[float, float]:
    """Returns the tokens of prompts and of answers that were counted since."""
    after = tokens(server)
    prompt, completion = (after[kind] - before.get(kind, 0) for kind in ("prompt", "completion"))
    return prompt, completion


def test_responses_say_what_chat_says(server: Server, client: openai.OpenAI) -> None:
    expected = chatted(client)
    ask: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 12}
    before = tokens(server)
    whole = client.responses.create(**ask)
    assert whole.output_text == expected.choices[0].message.content
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    events = list(client.responses.create(**ask, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert used(server, before) == (2 * whole.usage.input_tokens, 2 * whole.usage.output_tokens)


def test_responses_follow_schemas_and_call_tools(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Capital, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Capital)
    said = client.responses.create(
        model=MODEL,
        input=QUESTION,
        tools=[FUNCTION],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=400,
    )
    calls = [item for item in said.output if item.type == "function_call"]
    assert calls, said
    for call in calls:
        assert call.name == "weather"
        jsonschema.validate(json.loads(call.arguments), PLACE)


REFUSED = [{"type": "refusal", "refusal": "no"}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": 5},
        {"input": QUESTION, "background": True},
        {"input": QUESTION, "previous_response_id": "resp_absent"},
        {"input": [{"type": "message", "role": "assistant", "id": "1", "status": "completed", "content": REFUSED}]},
    ],
)
def test_unsupported_features_of_the_responses_api_are_client_errors(server: Server, wrong: dict[str, Any]) -> None:
    reply = httpx.post(f"{server.url}/v1/responses", json={"model": MODEL, **wrong}, timeout=60)
    assert reply.status_code == 400, reply.text
    advice = "stores no responses" if isinstance(wrong["input"], str) else "input"
    assert advice in reply.json()["error"]["message"]


def test_messages_say_what_chat_says(server: Server, client: openai.OpenAI) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    expected = chatted(client)
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as other:
        # The client itself knows no temperature any more.
        ask: Any = {"model": MODEL, "messages": TURNS, "max_tokens": 12, "extra_body": {"temperature": 0}}
        before = tokens(server)
        whole = other.messages.create(**ask)
        assert whole.content[0].text == expected.choices[0].message.content
        assert whole.usage.input_tokens == expected.usage.prompt_tokens
        with other.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
        assert used(server, before) == (2 * whole.usage.input_tokens, 2 * whole.usage.output_tokens)
        assert other.messages.count_tokens(model=MODEL, messages=TURNS).input_tokens == whole.usage.input_tokens
        once: Any = {"type": "any", "disable_parallel_tool_use": True}
        called = other.messages.create(model=MODEL, messages=TURNS, tools=[TOOL], tool_choice=once, max_tokens=400)
        calls = [block for block in called.content if block.type == "tool_use"]
        assert calls
        for call in calls:
            jsonschema.validate(call.input, PLACE)
        with pytest.raises(anthropic.NotFoundError) as absent:
            other.messages.create(**ask | {"model": "claude"})
        with pytest.raises(anthropic.BadRequestError) as wrong:
            other.messages.create(**ask | {"max_tokens": -1})
    for error, kind, words in ((absent, "not_found_error", "claude"), (wrong, "invalid_request_error", "max_tokens")):
        body = error.value.body
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert words in body["error"]["message"]


def test_the_tokenizer_describes_itself(server: Server) -> None:
    expected = AutoTokenizer.from_pretrained(server.folders[MODEL])
    for query in ("", f"?model={MODEL}"):
        reply = httpx.get(f"{server.url}/tokenizer_info{query}")
        assert (reply.status_code, reply.headers["x-triptych-model"]) == (200, MODEL)
        assert reply.json()["chat_template"] == expected.chat_template
        assert reply.json()["eos_token"] == expected.eos_token
    assert httpx.get(f"{server.url}/tokenizer_info?model=absent").status_code == 404
    # Without a name, as lm-eval asks.
    found = httpx.post(f"{server.url}/tokenize", json={"prompt": QUESTION, "add_special_tokens": False}).json()
    assert found["tokens"] == expected.encode(QUESTION, add_special_tokens=False)


def test_embeddings_are_404_with_a_word(server: Server) -> None:
    reply = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": "x"})
    assert (reply.status_code, "embeddings" in reply.json()["error"]["message"]) == (404, True)
