"""Answers in a form that the client asks for: schemas and tools, against real engines."""

import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.serve.conftest import Server
from tests.serve.support.questions import ASK, MODEL, PLACE, TOOLS

pytestmark = pytest.mark.slow


class Weather(BaseModel):
    """The class that a client asks for as the form of its answer."""

    place: Literal["Lima", "Quito"]
    sunny: bool
    hours: list[Literal[1, 2, 3]] = Field(max_length=3)


def test_structured_output_is_of_the_schema(client: openai.OpenAI) -> None:
    """Even an untrained model follows the schema: the engine masks all other tokens."""
    schema = {"type": "string", "enum": ["Lima", "Quito"]}
    form = {"type": "json_schema", "json_schema": {"name": "capital", "schema": schema, "strict": True}}
    ask = {"model": MODEL, "messages": ASK, "max_tokens": 40, "temperature": 0}
    said = client.chat.completions.create(**ask, response_format=form).choices[0].message.content
    assert json.loads(said) in ("Lima", "Quito")


def test_clients_get_the_class_that_they_ask_for(client: openai.OpenAI) -> None:
    for seed in range(6):
        ask = {"model": MODEL, "messages": ASK, "max_tokens": 60, "seed": seed}
        said = client.chat.completions.parse(**ask, response_format=Weather).choices[0]
        assert said.finish_reason == "stop"
        assert isinstance(said.message.parsed, Weather)


FORCED: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"choice": ["Lima", "Quito"]}},
    {"tools": TOOLS, "tool_choice": "required"},
]


@pytest.mark.parametrize("options", FORCED, ids=["response_format", "structured_outputs", "tools"])
def test_a_model_with_more_tokens_than_embeddings_is_forced_into_no_form(
    server: Server, client: openai.OpenAI, options: dict[str, Any]
) -> None:
    """The test's base has tokens of all styles. Its engine once died of such a request."""
    asked = {"model": "base", "messages": ASK, "max_tokens": 8, "chat_template_kwargs": {"style": "chatml"}}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=asked | options, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(options)))
    assert "embeddings" in reply.json()["error"]["message"]
    assert client.completions.create(model="base", prompt="The", max_tokens=2).choices


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
def test_tools_are_called(client: openai.OpenAI, choice: Any) -> None:
    """The model is untrained: the engine masks everything but a call. With "auto" the parser finds the call."""
    words = '<tool_call>\n{"name": "weather", "arguments": {"place": "Lima", "days": 3}}\n</tool_call>'
    form = {"structured_outputs": {"choice": [words]}} if choice == "auto" else {}
    ask = {"model": MODEL, "messages": ASK, "max_tokens": 400, "seed": 1, "tools": TOOLS, "tool_choice": choice}
    ask["parallel_tool_calls"] = False
    said = client.chat.completions.create(**ask, extra_body=form).choices[0]
    (call,) = said.message.tool_calls
    assert call.function.name == "weather"
    jsonschema.validate(json.loads(call.function.arguments), PLACE)
    pieces = [
        piece.function
        for chunk in client.chat.completions.create(**ask, extra_body=form, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or []
    ]
    assert "".join(piece.name or "" for piece in pieces) == "weather"
    jsonschema.validate(json.loads("".join(piece.arguments or "" for piece in pieces)), PLACE)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
        {"type": "nothing"},
        {"type": "object", "properties": 5},
        {"type": "string", "pattern": "("},
        {"$ref": "#/$defs/absent"},
        json.loads('{"properties": {"a":' * 200 + "1" + "}}" * 200),
    ],
)
def test_a_schema_that_nothing_can_follow_is_the_clients_mistake(server: Server, schema: dict[str, Any]) -> None:
    ask = {"model": MODEL, "messages": ASK, "max_tokens": 8}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tools = [{"type": "function", "function": {"name": "x", "parameters": schema}}]
    for options in ({"response_format": form}, {"tools": tools, "tool_choice": "required"}):
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=ask | options, timeout=60)
        # An engine may also do without what it cannot express.
        assert reply.status_code in (200, 400), reply.text
