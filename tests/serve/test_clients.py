"""The clients that people use, as they are, against the default server: no setting of the server is made for them.

They run as programs in an environment of their own, which `make test-clients` makes: what they need must not meet what
the server needs. `TRIPTYCH_TEST_CLIENTS` names its Python.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serve.conftest import Server

MODEL = "policy"
QUESTION = "What is the capital of Peru?"
START, ENDS = "The capital of Peru is", (" Lima", " Quito")
PYTHON = os.environ.get("TRIPTYCH_TEST_CLIENTS")
PROGRAMS = Path(__file__).parent / "clients"
# The requests to each path.
GENERATED = os.environ.get("TRIPTYCH_TEST_GENERATED", "20")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Otherwise they ask the network for prices of models and for data sets.
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}

needs_clients = pytest.mark.skipif(not PYTHON, reason="TRIPTYCH_TEST_CLIENTS names no Python with clients")


@pytest.fixture
def answer(client: openai.OpenAI) -> dict[str, Any]:
    """Returns the greedy answer, and the log-probabilities of its tokens."""
    turns = [{"role": "user", "content": QUESTION}]
    said = client.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=12, logprobs=True)
    (choice,) = said.choices
    return {"text": choice.message.content, "logprobs": [one.logprob for one in choice.logprobs.content]}


@pytest.fixture
def completion(client: openai.OpenAI) -> str:
    """Returns the greedy completion of the question."""
    return client.completions.create(model=MODEL, prompt=QUESTION, temperature=0, max_tokens=3).choices[0].text


def run(program: str, *arguments: str | Path) -> str:
    """Runs a program in the clients' environment and returns its output."""
    # Without the variables that this process has for its own Python.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | OFFLINE
    command = [str(Path(PYTHON or "").absolute().parent / program), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def found(name: str, server: Server, question: str = QUESTION, *folders: Path) -> dict[str, Any]:
    """Runs a program of the folder `clients` and returns its results."""
    printed = run("python", PROGRAMS / f"{name}_client.py", server.url, MODEL, question, *folders)
    return dict(json.loads(printed.splitlines()[-1]))


@needs_clients
@pytest.mark.parametrize("name", ["openai", "litellm", "langchain"])
def test_answers_streams_forms_and_tools(name: str, server: Server, answer: dict[str, Any], completion: str) -> None:
    """OpenAI's client is of another version than the one in the other tests."""
    got = found(name, server)
    assert {got.pop("answer"), got.pop("stream"), got.pop("async")} == {answer["text"]}
    assert got.pop("responses", answer["text"]) == answer["text"]
    assert got.pop("batch", [answer["text"]] * 2) == [answer["text"]] * 2
    assert got.pop("logprobs") == pytest.approx(answer["logprobs"], abs=1e-4)
    assert got.pop("tokens") == len(answer["logprobs"])
    assert got.pop("completion") == completion
    assert set(got) >= {"parsed", "tool"}
    for form in got.values():
        assert form in ({"city": "Lima"}, {"city": "Quito"})


@needs_clients
def test_instructor(server: Server) -> None:
    got = found("instructor", server)
    assert set(got) == {"schema", "tools", "async", "stream"}
    for form in got.values():
        assert form in ({"city": "Lima"}, {"city": "Quito"})


@needs_clients
def test_the_command_line_llm(
    server: Server, answer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    model = {"model_id": "served", "model_name": MODEL, "api_base": f"{server.url}/v1", "supports_schema": True}
    # JSON is YAML too.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    options = ("-o", "temperature", "0", "-o", "max_tokens")
    for stream in ([], ["--no-stream"]):
        assert run("llm", "-m", "served", *stream, QUESTION, *options, "12").removesuffix("\n") == answer["text"]
    schema = {"type": "object", "properties": {"city": {"enum": ["Lima", "Quito"]}}, "required": ["city"]}
    form = run("llm", "-m", "served", "--schema", json.dumps(schema), QUESTION, *options, "60")
    assert json.loads(form) in ({"city": "Lima"}, {"city": "Quito"})


@needs_clients
def test_lm_evaluation_harness(
    server: Server, client: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's model `local-completions` asks for the tokenizer, and scores texts by `echo` and `logprobs`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    got = found("lm_eval", server, START, tmp_path)
    assert got["likelihoods"] == pytest.approx([log_likelihood(server, START, end) for end in ENDS], abs=1e-2)
    ask: Any = {"model": MODEL, "temperature": 0, "max_tokens": 12}
    said = client.chat.completions.create(**ask, messages=[{"role": "user", "content": START}])
    assert got["answer"] == said.choices[0].message.content
    assert got["completion"] == client.completions.create(**ask, prompt=START).choices[0].text


@needs_clients
def test_no_generated_request_is_an_error_of_the_server(server: Server, tmp_path: Path) -> None:
    """schemathesis generates requests from the description of the API, half of them wrong on purpose."""
    described = httpx.get(f"{server.url}/openapi.json").json()
    bodies = [body_of(methods["post"]) for methods in described["paths"].values() if "post" in methods]
    for schema in (*bodies, *described["components"]["schemas"].values()):
        short(schema)
    (path := tmp_path / "openapi.json").write_text(json.dumps(described))
    # As a command whose exit status is an error if a check fails.
    options = ("--checks", "not_a_server_error", "--phases", "fuzzing", "--max-examples", GENERATED)
    quiet = ("--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "30", "--seed", "1")
    printed = run("schemathesis", "run", path, "--url", server.url, *options, *quiet)
    assert "No issues found" in printed, printed[-2000:]


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of the body of an operation's requests."""
    return dict(operation["requestBody"]["content"]["application/json"])["schema"]


def short(schema: dict[str, Any]) -> None:
    """Restricts the requests of a schema to a served model and to little work."""
    fields = schema.get("properties", {})
    some: dict[str, Any] = {name: {"type": "integer", "minimum": 1, "maximum": 4} for name in (*LIMITS, "n")}
    some |= {"model": {"enum": [MODEL, "base"]}}
    given = {name: one for name, one in some.items() if name in fields}
    fields |= given
    schema["required"] = sorted({*schema.get("required", ()), *given})


def test_the_likelihood_of_a_text_as_evaluations_ask_for_it(server: Server, client: openai.OpenAI) -> None:
    """lm-eval sends token ids, and reads the log-probabilities of the prompt before one new token."""
    tokenizer = AutoTokenizer.from_pretrained(server.folders[MODEL])
    ids = tokenizer.encode(START + ENDS[0])
    ask: Any = {"model": MODEL, "prompt": [ids], "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    logprobs = client.completions.create(**ask, seed=1234).choices[0].logprobs
    assert len(logprobs.token_logprobs) == len(ids) + 1
    asked = sum(logprobs.token_logprobs[len(tokenizer.encode(START)) : len(ids)])
    assert asked == pytest.approx(log_likelihood(server, START, ENDS[0]), abs=1e-2)


def log_likelihood(server: Server, start: str, end: str) -> float:
    """Returns the log-probability of the end of a text after its start, by an independent forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(server.folders[MODEL])
    model = AutoModelForCausalLM.from_pretrained(server.folders[MODEL], dtype=torch.float32)
    ids, length = tokenizer.encode(start + end), len(tokenizer.encode(start))
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logs[place - 1, ids[place]]) for place in range(length, len(ids)))
