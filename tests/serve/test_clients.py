"""The clients that people use, as they are, against the default server: no setting of the server is made for them.

OpenAI's and Anthropic's own are in `test_gateway` and `test_apis`. One that is not installed is skipped with a word.
"""

from typing import Any, Literal

import openai
import pytest
import torch
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serve.conftest import Server

pytestmark = pytest.mark.slow

MODEL = "policy"
QUESTION = "What is the capital of Peru?"
TURNS = [{"role": "user", "content": QUESTION}]


class Capital(BaseModel):
    """What clients ask for as their answer."""

    city: Literal["Lima", "Quito"]


def installed(name: str) -> Any:
    """The module of a client."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture
def expected(client: openai.OpenAI) -> str:
    """The greedy answer."""
    said = client.chat.completions.create(model=MODEL, messages=TURNS, temperature=0, max_tokens=12)
    return str(said.choices[0].message.content)


def test_litellm(server: Server, expected: str) -> None:
    litellm = installed("litellm")
    ask = {"model": f"openai/{MODEL}", "api_base": f"{server.url}/v1", "api_key": "none", "messages": TURNS}
    ask |= {"temperature": 0, "max_tokens": 12}
    assert litellm.completion(**ask).choices[0].message.content == expected
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True)]
    assert "".join(pieces) == expected


def test_langchain(server: Server, expected: str) -> None:
    langchain = installed("langchain_openai")
    options = {"model": MODEL, "base_url": f"{server.url}/v1", "api_key": "none", "temperature": 0}
    assert langchain.ChatOpenAI(**options, max_tokens=12).invoke(QUESTION).content == expected
    for method in ("json_schema", "function_calling"):
        chat = langchain.ChatOpenAI(**options, max_tokens=200).with_structured_output(Capital, method=method)
        assert isinstance(chat.invoke(QUESTION), Capital)


def test_instructor(client: openai.OpenAI) -> None:
    instructor = installed("instructor")
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    asked = {"model": MODEL, "messages": TURNS, "max_tokens": 60, "response_model": Capital}
    assert isinstance(patched.chat.completions.create(**asked), Capital)


def test_llm(server: Server, expected: str) -> None:
    models = installed("llm.default_plugins.openai_models")
    chat = models.Chat(model_id=MODEL, model_name=MODEL, api_base=f"{server.url}/v1")
    said = chat.prompt(QUESTION, key="none", stream=False, temperature=0, max_tokens=12)
    assert said.text() == expected


def test_lm_eval(server: Server) -> None:
    models, instances = installed("lm_eval.models.openai_completions"), installed("lm_eval.api.instance")
    evaluated = models.LocalCompletionsAPI(
        model=MODEL, base_url=f"{server.url}/v1/completions", tokenizer_backend="remote", max_length=512
    )
    pair = ("The capital of Peru is", " Lima")
    ((likelihood, _),) = evaluated.loglikelihood([instances.Instance("loglikelihood", {}, pair, 0)])
    assert likelihood == pytest.approx(log_likelihood(server, *pair), abs=1e-2)


def test_the_likelihood_of_a_text_as_evaluations_ask_for_it(server: Server, client: openai.OpenAI) -> None:
    """lm-eval sends token ids, and reads the log-probabilities of the prompt before one new token."""
    tokenizer = AutoTokenizer.from_pretrained(server.folders[MODEL])
    start, end = "The capital of Peru is", " Lima"
    ids = tokenizer.encode(start + end)
    ask: Any = {"model": MODEL, "prompt": [ids], "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    found = client.completions.create(**ask, seed=1234).choices[0].logprobs
    assert len(found.token_logprobs) == len(ids) + 1
    asked = sum(found.token_logprobs[len(tokenizer.encode(start)) : len(ids)])
    assert asked == pytest.approx(log_likelihood(server, start, end), abs=1e-2)


def log_likelihood(server: Server, start: str, end: str) -> float:
    """The log-probability of the end of a text after its start, by an independent forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(server.folders[MODEL])
    model = AutoModelForCausalLM.from_pretrained(server.folders[MODEL], dtype=torch.float32)
    ids, length = tokenizer.encode(start + end), len(tokenizer.encode(start))
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[place - 1, ids[place]]) for place in range(length, len(ids)))
