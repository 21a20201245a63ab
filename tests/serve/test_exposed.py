"""The real server under hostile and careless clients, none of which disturbs the others."""

import json
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.serve._private import replica
from transformers import AutoTokenizer

from serve.compat.ray_serve import listen_on_node_address
from serve.http.limits import MIN_BODY_BYTES
from tests.helpers import fastest
from tests.serve.conftest import Server, connection, head

pytestmark = pytest.mark.slow

MODEL = "policy"
ASK = {"model": MODEL, "prompt": "The", "max_tokens": 4, "temperature": 0}


def tokens(server: Server) -> dict[str, float]:
    text = httpx.get(f"{server.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = Counter[str]()
    for sample in samples:
        if sample.name == "triptych_tokens_total" and sample.labels["model"] == MODEL:
            found[sample.labels["kind"]] += sample.value
    return found


def test_tokenize_there_and_back(server: Server) -> None:
    text = "The capital of Peru is Lima."
    ids = AutoTokenizer.from_pretrained(server.folders[MODEL]).encode(text, add_special_tokens=False)
    asked = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    said = httpx.post(f"{server.url}/tokenize", json=asked).json()
    assert (said["tokens"], said["count"]) == (ids, len(ids))
    back = httpx.post(f"{server.url}/detokenize", json={"model": MODEL, "tokens": ids}).json()
    assert back == {"prompt": text}
    messages = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    assert httpx.post(f"{server.url}/tokenize", json=messages).json()["count"] > len(ids)
    for wrong in ({"model": MODEL}, {"model": MODEL, "tokens": "x"}):
        assert httpx.post(f"{server.url}/detokenize", json=wrong).status_code == 400
    assert httpx.post(f"{server.url}/v1/score", json={"model": MODEL, "conversations": []}).status_code == 400


def test_answers_say_who_gave_them_and_tokens_are_counted(server: Server, client: openai.OpenAI) -> None:
    before = tokens(server)
    whole = client.completions.with_raw_response.create(**ASK)
    assert whole.headers["x-triptych-model"] == MODEL
    assert whole.headers["x-triptych-weights"] == server.run.require(MODEL).weights
    assert whole.headers.get_list("x-request-id") == [whole.request_id]
    named = client.completions.with_raw_response.create(**ASK, extra_headers={"X-Request-Id": "mine-1"})
    assert named.headers.get_list("x-request-id") == ["mine-1"]
    used = whole.parse().usage
    list(client.completions.create(**ASK, stream=True))
    after = tokens(server)
    assert after["prompt"] - before.get("prompt", 0) == 3 * used.prompt_tokens
    assert after["completion"] - before.get("completion", 0) == 3 * used.completion_tokens


def engines(server: Server) -> dict[str, float]:
    """Returns the state of the model's engine, as /metrics shows it."""
    text = httpx.get(f"{server.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    prefix = "triptych_engine_"
    return {
        one.name.removeprefix(prefix): one.value
        for one in samples
        if one.labels.get("model") == MODEL and prefix in one.name
    }


def test_the_state_of_the_engine_is_in_the_metrics(server: Server) -> None:
    prompt = {"prompt": "She sells sea shells " * 60}
    before = engines(server)
    body = {"model": MODEL, "max_tokens": 900, "ignore_eos": True, "n": 3, "temperature": 1, **prompt}
    sent = json.dumps(body).encode()
    with connection(server, head(len(sent)) + sent):
        end = time.monotonic() + 120
        while (state := engines(server))["running"] < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert (state["running"], state["waiting"]) == (3, 0)
        assert 0 < state["kv_cache_usage"] < 0.5
    # All answers but the first find the prompt in the cache.
    assert state["prefix_hits"] - before["prefix_hits"] > 0.4 * (state["prefix_tokens"] - before["prefix_tokens"]) > 0
    while engines(server)["running"] and time.monotonic() < end:
        time.sleep(0.05)
    after = engines(server)
    assert (after["running"], after["preemptions"]) == (0, before["preemptions"])


def test_a_large_body_is_refused(server: Server) -> None:
    headers = {"Content-Type": "application/json"}
    # The server may also hang up on a client that goes on sending.
    with suppress(httpx.WriteError):
        reply = httpx.post(f"{server.url}/v1/completions", content=b" " * (50 << 20), headers=headers, timeout=60)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, 413)
    hidden = httpx.post(
        f"{server.url}/v1/completions", content=iter([b" " * MIN_BODY_BYTES, b" "]), headers=headers, timeout=60
    )
    assert hidden.status_code == 413


PADDING = {"tokenize": True, "padding": "max_length", "max_length": 1_000_000_000}
SHORT = [{"role": "user", "content": "x"}]
# Each once kept all models from answering, the first for more than a minute.
ABUSE = {
    "padding": ("/v1/chat/completions", {"messages": SHORT, "chat_template_kwargs": PADDING}),
    "padding only": ("/tokenize", {"messages": SHORT, "chat_template_kwargs": {"padding": True, "max_length": 10**7}}),
    "long text": ("/tokenize", {"prompt": "lima " * 1_800_000}),
    "text within the body": ("/tokenize", {"prompt": "lima " * 200_000}),
    "messages": ("/tokenize", {"messages": SHORT * 30_000}),
    "parts": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text"}] * 60_000}]}),
    "tools": ("/tokenize", {"messages": SHORT, "tools": [{"type": "function", "function": {"name": "f"}}] * 15_000}),
    "answers": ("/v1/completions", {"prompt": "x", "n": 10_000}),
    "prompts": ("/v1/completions", {"prompt": ["x"] * 100_000}),
    "stops": ("/v1/completions", {"prompt": "x", "stop": ["y"] * 10_000}),
}


@pytest.mark.parametrize("name", ABUSE)
def test_a_request_that_no_model_can_use_is_refused_at_once(server: Server, name: str) -> None:
    path, body = ABUSE[name]

    def refused() -> None:
        reply = httpx.post(server.url + path, json={"model": MODEL, **body}, timeout=60)
        assert reply.status_code in (400, 413)

    assert fastest(refused, below=2) < 2


@pytest.mark.parametrize(
    "options",
    [{"stream": True, "stream_interval": 500}, {"n": 20, "temperature": 1}, {"stream": True, "prompt": ["The", "A"]}],
    ids=["stream interval", "answers", "prompts"],
)
def test_a_client_that_hangs_up_pays_for_what_was_computed(server: Server, options: dict[str, Any]) -> None:
    body = ASK | {"max_tokens": 1500, "ignore_eos": True} | options
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    tokenizer = AutoTokenizer.from_pretrained(server.folders[MODEL])
    sent, before = json.dumps(body).encode(), tokens(server)
    with connection(server, head(len(sent)) + sent):
        end = time.monotonic() + 60
        while not engines(server)["running"] and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
    end = time.monotonic() + 60
    while (after := tokens(server)) == before and time.monotonic() < end:
        time.sleep(0.05)
    assert after["prompt"] - before["prompt"] == sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    # The engine makes hundreds a second; at the last event that was read it were two at most.
    assert 20 < after["completion"] - before["completion"] < 1500 * 20


def test_a_replicas_grpc_server_has_the_nodes_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve itself gives it all interfaces."""
    places: list[str] = []
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda _, place: places.append(place))
    listen_on_node_address()
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert places == [f"{ray.util.get_node_ip_address()}:0"]


def test_every_socket_of_a_run_and_its_server_is_of_the_loopback_interface(server: Server) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found: dict[str, set[str]] = {}
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr):
                    found.setdefault(one.laddr.ip.removeprefix("::ffff:"), set()).add(process.name())
    assert set(found) == {"127.0.0.1"}, found
    # The gateway listens for clients and replicas, and so do Ray's own processes and each replica's gRPC server.
    assert len(found["127.0.0.1"]) > 5


def test_slow_clients_and_clients_that_never_read_do_not_stop_others(server: Server, client: openai.OpenAI) -> None:
    expected = client.completions.create(**ASK).choices[0].text
    body = json.dumps({**ASK, "max_tokens": 2000, "ignore_eos": True, "stream": True, "n": 2}).encode()
    with ExitStack() as held:
        for number in range(500):
            # Some stop in the middle of a header, the others in the middle of the body.
            sent = b"POST /v1/comp" if number % 2 else head(1_000) + b"{"
            held.enter_context(connection(server, sent))
        for _ in range(3):
            held.enter_context(connection(server, head(len(body)) + body))
        for _ in range(3):
            assert client.completions.create(**ASK).choices[0].text == expected
        assert httpx.get(f"{server.url}/health", timeout=10).json() == {"status": "ok"}
    assert client.completions.create(**ASK).choices[0].text == expected
