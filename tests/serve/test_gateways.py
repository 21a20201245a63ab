"""Two gateways of one server: the state that they share, and the streams that are lost with one of them."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from cluster.errors import UserError
from cluster.keys import KeyRing
from serve.application import gateway_node, gateway_places
from tests.helpers import wait_until
from tests.serve.conftest import ADMIN, Server, finish_model

MODEL = "policy"
ASK: dict[str, Any] = {"model": MODEL, "prompt": "The", "max_tokens": 4}
LONG = ASK | {"max_tokens": 1200, "ignore_eos": True, "stream": True}


@pytest.fixture
def ring(server: Server) -> Iterator[KeyRing]:
    """Yields the keys of the server, and removes all of them afterwards."""
    yield KeyRing(server.run.root)
    (server.run.root / "keys.json").unlink(missing_ok=True)


def asked(url: str, key: str, body: dict[str, Any] = ASK) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def test_both_gateways_answer_for_the_same_models(server: Server) -> None:
    replies = [httpx.post(f"{url}/v1/completions", json=ASK, timeout=60) for url in (server.url, server.other_url)]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert len({reply.headers["x-triptych-weights"] for reply in replies}) == 1
    for name, reply in zip(("access.jsonl", "access-1.jsonl"), replies, strict=True):
        # A request is logged after its response.
        log, number = server.run.root / name, reply.headers["x-request-id"]
        wait_until(lambda log=log, number=number: number in log.read_text(), 60, f"{number} in {name}")


def test_the_limits_and_the_budget_of_a_key_hold_in_both(server: Server, ring: KeyRing) -> None:
    few = ring.add("few", ["chat"], 3, None, by="test")
    short = ring.add("short", ["chat"], None, None, by="test", token_budget=40)
    assert [asked(server.url, few).status_code for _ in range(4)] == [200, 200, 200, 429]
    spent = 0
    while (reply := asked(server.url, short)).status_code == 200:
        spent += reply.json()["usage"]["total_tokens"]
    assert 40 - 8 < spent <= 40
    wait_until(lambda: asked(server.other_url, few).status_code == 429, 15, "the other gateway to hear of requests")
    wait_until(lambda: asked(server.other_url, short).status_code == 429, 15, "the other gateway to hear of tokens")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages"])
def test_a_budget_can_be_used_to_its_last_token(server: Server, ring: KeyRing, path: str) -> None:
    """The prompt has more bytes than the budget has tokens."""
    text = "What is the capital of Peru? " * 3
    prompt = {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    count = httpx.post(f"{server.url}/tokenize", json={"model": MODEL} | prompt).json()["count"]
    assert count < len(text)
    key = ring.add("last", ["chat"], None, None, by="test", token_budget=count + 4)
    headers, ask = {"Authorization": f"Bearer {key}"}, {"model": MODEL, "ignore_eos": True} | prompt
    replies = [
        httpx.post(f"{server.url}{path}", json=ask | {"max_tokens": most}, headers=headers) for most in (5, 4, 1)
    ]
    assert [reply.status_code for reply in replies] == [429, 200, 429], replies[1].text
    assert f"{count + 4} are left, and this request may use {count + 5}: give it a smaller" in replies[0].text
    ring.revoke("last", by="test")


def test_requests_at_once_are_those_of_both(server: Server, ring: KeyRing) -> None:
    one = ring.add("one", ["chat"], None, None, by="test", max_parallel_requests=1)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, headers={"Authorization": f"Bearer {one}"}):
        wait_until(lambda: asked(server.other_url, one).status_code == 429, 15, "the other gateway to hear of it")
    wait_until(lambda: asked(server.other_url, one).status_code == 200, 60, "the end of the request")


def test_a_promotion_reaches_both_before_it_is_done(server: Server) -> None:
    """The second gateway asks the first one."""
    run, before = server.run, server.run.require(MODEL).weights
    finish_model(run, MODEL, seed=3, end_id=4)
    new = run.require(MODEL).weights
    finish = ((server.other_url, "promote", new), (server.other_url, "rollback", before))
    for url, action, weights in finish:
        done = httpx.post(f"{url}/admin/{action}", headers=ADMIN, json={"model": MODEL}, timeout=60)
        assert (done.status_code, done.json()["to"]) == (200, weights), done.text
        assert "unreached_gateways" not in done.json()
        for gateway in (server.url, server.other_url):
            versions = httpx.get(f"{gateway}/admin/versions", headers=ADMIN).json()
            assert versions[MODEL]["live"] == weights
            assert f'model_info{{model="{MODEL}",weights="{weights}"}} 1.0' in httpx.get(f"{gateway}/metrics").text
    wrong = httpx.post(f"{server.other_url}/admin/promote", headers=ADMIN, json={"model": MODEL, "version": "x"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (409, "ConflictError")
    finish_model(run, MODEL, seed=2, end_id=4)


def test_a_gateway_that_dies_loses_its_own_streams_and_is_replaced(server: Server) -> None:
    counts, failures = {}, {}
    begun = {server.url: threading.Event(), server.other_url: threading.Event()}

    def read(url: str) -> None:
        counts[url] = 0
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as reply:
                for _ in reply.iter_lines():
                    counts[url] += 1
                    begun[url].set()
        except httpx.HTTPError as error:
            failures[url] = error

    readers = [threading.Thread(target=read, args=(url,)) for url in begun]
    for reader in readers:
        reader.start()
    assert all(event.wait(30) for event in begun.values())
    (process,) = [
        one for one in psutil.Process().children(recursive=True) if ":gateway-1" in " ".join(one.cmdline()[:1])
    ]
    process.kill()
    for reader in readers:
        reader.join(60)
    assert list(failures) == [server.other_url]
    # A line and an empty line for each token, and the end.
    assert counts[server.url] >= 2 * LONG["max_tokens"] > counts[server.other_url]

    def answers() -> bool:
        try:
            return httpx.get(f"{server.other_url}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(answers, 60, "another gateway")
    live = [httpx.get(f"{url}/admin/versions", headers=ADMIN).json()[MODEL]["live"] for url in begun]
    assert live == [server.run.require(MODEL).weights] * 2


def test_gateways_beyond_the_nodes_listen_at_the_next_ports(ray_session: None) -> None:
    places = gateway_places(3, "127.0.0.1", 8000)
    assert [(place.name, place.port) for place in places] == [
        ("gateway", 8000),
        ("gateway-1", 8001),
        ("gateway-2", 8002),
    ]
    assert {place.node for place in places} == {gateway_node()}
    with pytest.raises(UserError, match=r"gateways=3 needs the ports 65534 to 65536, and 65535 is the last"):
        gateway_places(3, "127.0.0.1", 65534)
