"""The middleware: headers, access log and metrics of every response, and hostile requests."""

import asyncio
import gzip
import json
import logging
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.errors import UserError
from cluster.feedback import open_feedback
from cluster.keys import KeyRing
from serve.gateway import GatewaySettings
from serve.http.limits import MAX_BODY_BYTES, MIN_BODY_BYTES
from serve.http.middleware import SAFE_HEADERS
from tests.serve.support.local import Parrot, asking, gateway_app, prompt

pytestmark = pytest.mark.anyio

ASK = "/v1/completions"


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "access.jsonl").read_text().splitlines()]


async def measured(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Returns every sample of /metrics by its name and the values of its labels, in the order of the labels' names."""
    text = (await client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in samples}


async def test_every_response_has_safe_headers_and_a_request_id(tmp_path: Path) -> None:
    async with asking(GatewaySettings(tmp_path, weights={"parrot": "abc"})) as client:
        replies = [
            await client.get("/"),
            await client.get("/runs"),
            await client.get("/nothing"),
            await client.get("/v1/models"),
            await client.get("/metrics", headers={"Host": "evil.example"}),
            await client.put(ASK),
            await client.post(ASK, json=prompt("a")),
            await client.post(ASK, json=prompt("a", stream=True)),
            await client.post(ASK, json=prompt("fail")),
            await client.post(ASK, content=b"{"),
        ]
        statuses = [reply.status_code for reply in replies]
        assert statuses == [200, 200, 404, 200, 403, 405, 200, 200, 500, 415]
        for reply in replies:
            for name in SAFE_HEADERS:
                assert reply.headers[name]
            assert "access-control-allow-origin" not in reply.headers
        ids = [reply.headers["x-request-id"] for reply in replies]
        assert len(set(ids)) == len(ids)
        kinds = [reply.json()["error"]["type"] for reply in replies if reply.status_code in (403, 404, 405)]
        assert kinds == ["NotFoundError", "ForbiddenError", "MethodNotAllowedError"]
        answered = [reply.headers.get("x-triptych-weights") for reply in replies]
        assert answered == [None] * 6 + ["abc"] * 3 + [None]
    assert [row["request"] for row in logged(tmp_path)] == ids
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with asking(GatewaySettings()) as client:
        reply = await client.options(ASK, headers=preflight)
    assert (reply.status_code, "access-control-allow-origin" in reply.headers) == (405, False)


async def test_head_is_get_without_the_body(tmp_path: Path) -> None:
    async with asking(GatewaySettings(tmp_path)) as client:
        for path in ("/health", "/v1/models", "/", "/nothing"):
            full, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (full.status_code, b"")
            assert head.headers["content-length"] == full.headers["content-length"]
    assert [row["method"] for row in logged(tmp_path)] == ["GET", "HEAD"] * 4


async def test_a_compressed_body_is_415() -> None:
    async with asking(GatewaySettings()) as client:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        reply = await client.post(ASK, content=gzip.compress(json.dumps(prompt("a")).encode()), headers=headers)
        plain = await client.post(ASK, json=prompt("a"), headers={"Content-Encoding": "identity"})
    assert (reply.status_code, reply.json()["error"]["code"], plain.status_code) == (415, 415, 200)


@pytest.mark.parametrize("path", ["/thumbs", "/label/judgement", "/compare/vote"])
@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b'"\\ud800"', b'{"a": NaN}', b"[" * 5_000])
async def test_values_that_json_cannot_hold_are_a_client_error(tmp_path: Path, path: str, value: bytes) -> None:
    settings = GatewaySettings(tmp_path, f"sqlite:///{tmp_path / 'feedback.db'}")
    with open_feedback(settings.feedback_url or "") as database:
        token = database.add_annotator("ann")
    fields = [b"request", b"model", b"messages", b"answer", b"good", b"prompt", b"answers", b"seconds", b"comparison"]
    async with asking(settings, key=token) as client:
        for body in (value, b"{" + b", ".join(b'"%b": %b' % (field, value) for field in fields) + b"}"):
            reply = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert reply.status_code in (400, 422)
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


async def test_the_cause_of_an_error_is_in_the_log_and_not_in_the_response(tmp_path: Path) -> None:
    async with asking(GatewaySettings(tmp_path)) as client:
        reply = await client.post(ASK, json=prompt("fail"), headers={"X-Request-Id": "mine-1"})
    assert reply.json() == {
        "error": {
            "message": "something went wrong in the server; its log says what, under mine-1",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    }
    assert reply.headers["connection"] == "close"
    assert (logged(tmp_path)[0]["request"], logged(tmp_path)[0]["status"]) == ("mine-1", 500)


@pytest.mark.parametrize("name", ["a\tb", "x" * 65, "a b", "é", '"', ""])
async def test_a_request_id_that_could_do_harm_is_replaced(name: str) -> None:
    async with asking(GatewaySettings()) as client:
        reply = await client.get("/health", headers={b"X-Request-Id": name.encode("latin-1")})
    assert reply.headers["x-request-id"] != name
    assert len(reply.headers["x-request-id"]) == 32


async def test_clients_cannot_add_lines_to_the_log_and_it_holds_no_content(tmp_path: Path) -> None:
    async with asking(GatewaySettings(tmp_path)) as client:
        await client.get("/v1/models/x%0d%0a%7B%22key%22:%22admin%22%7D?q=private")
        await client.post(ASK, json=prompt("a private word"), headers={"Authorization": "Bearer private"})
        await client.get("/" + "y" * 5_000)
    rows = logged(tmp_path)
    assert rows[0]["path"] == '/v1/models/x\r\n{"key":"admin"}'
    assert [row["status"] for row in rows] == [404, 200, 404]
    assert "private" not in (tmp_path / "access.jsonl").read_text()
    assert len(rows[2]["path"]) == 200


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "parrot/../../x", "%00", "%ff%fe", "parrot%0a", "a" * 4000]
)
async def test_a_model_name_is_only_looked_up(name: str) -> None:
    async with asking(GatewaySettings()) as client:
        assert (await client.get(f"/v1/models/{name}")).status_code == 404
        reply = await client.post(ASK, json=prompt("a") | {"model": name})
        assert (reply.status_code, reply.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b'"parrot"',
        b"\xff\xfe\x00",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "parrot", "prompt": "\\uD800"}',
        b'{"model": "parrot", "temperature": NaN}',
        b'{"model": "parrot", "seed": Infinity}',
        b'{"model": "parrot", "seed": ' + b"9" * 5_000 + b"}",
        b'{"model":' * 100_000,
        b"[" * 100_000,
    ],
)
async def test_a_body_that_is_no_json_object_is_400(body: bytes) -> None:
    async with asking(GatewaySettings()) as client:
        reply = await client.post(ASK, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == 400
    assert "Traceback" not in reply.text
    assert len(reply.text) < 400


@pytest.mark.parametrize(("context", "limit"), [(256, MIN_BODY_BYTES), (8192, 2 << 20), (10**6, MAX_BODY_BYTES)])
async def test_a_body_that_no_context_holds_is_413_announced_or_not(context: int, limit: int) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        yield b" " * count

    headers = {"Content-Type": "application/json"}
    async with asking(GatewaySettings(context=context)) as client:
        for count, status in ((limit, 400), (limit + 1, 413)):
            announced = await client.post(ASK, content=b" " * count, headers=headers)
            hidden = await client.post(ASK, content=pieces(count), headers=headers)
            assert [announced.status_code, hidden.status_code] == [status, status]
        assert (await client.get("/health")).status_code == 200


async def test_limits_of_a_key(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    few = ring.add("few", ["chat"], 2, None, by="test")
    short = ring.add("short", ["chat"], None, 40, by="test")
    async with asking(GatewaySettings(tmp_path), key=few) as client:
        assert [(await client.post(ASK, json=prompt("a"))).status_code for _ in range(3)] == [200, 200, 429]
        reply = await client.get("/v1/models")
        assert (reply.status_code, reply.json()["error"]["type"]) == (429, "RateLimitError")
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert (await client.get("/health")).status_code == 200
    async with asking(GatewaySettings(tmp_path), key=short) as client:
        # 3 + 3 tokens, then 5 + 7: the stream's own count. 22 are left.
        assert (await client.post(ASK, json=prompt("a b c", max_tokens=3))).status_code == 200
        assert (await client.post(ASK, json=prompt("a b c d e", max_tokens=7, stream=True))).status_code == 200
        reply = await client.post(ASK, json=prompt("a", max_tokens=30))
        # 9 tokens are missing, at 40 a minute, less what came back while the two answers were written.
        assert reply.status_code == 429
        assert 10 <= int(reply.headers["retry-after"]) <= 14
        assert (await client.post(ASK, json=prompt("a", max_tokens=20))).status_code == 200


async def test_a_key_expires_and_has_so_many_requests_at_once(tmp_path: Path) -> None:
    ring, model = KeyRing(tmp_path), Parrot()
    old = ring.add("old", ["chat"], None, None, by="test", expires=time.time() - 1)
    ring.add("old", ["chat"], None, None, by="test", expires=time.time() + 3600)
    one = ring.add("one", ["chat"], None, None, by="test", max_parallel_requests=1)
    async with asking(GatewaySettings(tmp_path), key=old) as client:
        assert (await client.get("/v1/models")).status_code == 401
    async with asking(GatewaySettings(tmp_path), model, key=one) as client:
        waiting = asyncio.create_task(client.post(ASK, json=prompt("wait")))
        await model.waits.wait()
        reply = await client.get("/v1/models")
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        model.go_on.set()
        assert (await waiting).status_code == 200
        for _ in range(2):
            assert (await client.get("/v1/models")).status_code == 200


def written_usage(run: Path) -> list[int]:
    """Returns the tokens that the file of the budgets says each key has used; none before there is a file."""
    file = run / "usage.json"
    return list(json.loads(file.read_text()).values()) if file.exists() else []


async def test_a_budget_outlives_the_server(tmp_path: Path) -> None:
    token = KeyRing(tmp_path).add("ann", ["chat"], None, None, by="test", token_budget=40)
    model = Parrot()
    async with asking(GatewaySettings(tmp_path), model, key=token) as client:
        # At once each may use 1 + 20 tokens: the second does not fit beside the first.
        waiting = asyncio.create_task(client.post(ASK, json=prompt("wait", max_tokens=20)))
        await model.waits.wait()
        reply = await client.post(ASK, json=prompt("a", max_tokens=20))
        assert (reply.status_code, reply.json()["error"]["type"]) == (429, "InsufficientQuotaError")
        model.go_on.set()
        assert (await waiting).status_code == 200
        # 1 + 1 so far.
        assert (await client.post(ASK, json=prompt("a b c", max_tokens=3))).status_code == 200
        # The file is written a while after a request.
        async with asyncio.timeout(60):
            while 8 not in written_usage(tmp_path):
                await asyncio.sleep(0.05)
    assert stat.S_IMODE((tmp_path / "usage.json").stat().st_mode) == 0o600
    async with asking(GatewaySettings(tmp_path), model, key=token) as client:
        # 8 of 40 are used.
        for most, status in ((32, 429), (31, 200), (30, 429), (29, 200)):
            assert (await client.post(ASK, json=prompt("a", max_tokens=most))).status_code == status, most
    (tmp_path / "usage.json").write_text("[]")
    with pytest.raises(UserError, match=r"usage\.json is damaged"):
        gateway_app({}, GatewaySettings(tmp_path))


@pytest.mark.parametrize("stream", [True, False])
async def test_requests_at_once_share_the_tokens_and_a_given_up_one_pays_for_what_was_computed(
    tmp_path: Path, stream: bool
) -> None:
    token = KeyRing(tmp_path).add("ann", ["chat"], None, 100, by="test")
    model = Parrot()
    async with asking(GatewaySettings(tmp_path), model, key=token) as client:
        body = prompt("wait", max_tokens=45, stream=stream)
        asked = [asyncio.create_task(client.post(ASK, json=body)) for _ in range(30)]
        async with asyncio.timeout(60):
            while sum(task.done() for task in asked) < 28:
                await asyncio.sleep(0.05)
        done, waiting = await asyncio.wait(asked, timeout=0.1)
        assert [task.result().status_code for task in done] == [429] * 28
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        # 1 + 5 each.
        for most, status in ((95, 429), (80, 200)):
            assert (await client.post(ASK, json=prompt("a", max_tokens=most))).status_code == status
    assert sum(row["completion_tokens"] for row in logged(tmp_path)[:-1]) == 10


async def test_the_api_describes_itself() -> None:
    async with asking(GatewaySettings()) as client:
        described = (await client.get("/openapi.json")).json()
    assert described["openapi"] == "3.1.0"
    assert described["components"]["schemas"]["Stop"] == {"type": "string"}
    body = described["paths"]["/v1/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"type": "object"}
    assert "/v1/score" not in described["paths"], "no model scores"


async def test_the_official_client_waits_for_the_time_in_retry_after(tmp_path: Path) -> None:
    token = KeyRing(tmp_path).add("ann", ["chat"], 60, None, by="test")
    async with asking(GatewaySettings(tmp_path), key=token) as http:
        for _ in range(60):
            await http.get("/v1/models")
        url = "http://127.0.0.1/v1"
        once = openai.AsyncOpenAI(base_url=url, api_key=token, http_client=http, max_retries=0)

        async def list_until_refused() -> None:
            # On a slow machine the key may make a few more requests meanwhile.
            for _ in range(600):
                await once.models.list()

        with pytest.raises(openai.RateLimitError):
            await list_until_refused()
        again = openai.AsyncOpenAI(base_url=url, api_key=token, http_client=http, max_retries=2)
        assert [card.id async for card in again.models.list()] == ["parrot"]


async def test_a_full_queue_is_503_and_empties(tmp_path: Path) -> None:
    model = Parrot()
    async with asking(GatewaySettings(max_concurrent=2), model) as client:
        waiting = [asyncio.create_task(client.post(ASK, json=prompt("wait"))) for _ in range(2)]
        while (await measured(client)).get(("triptych_requests_running", "parrot")) != 2:
            await asyncio.sleep(0.01)
        full = await client.post(ASK, json=prompt("a"))
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        model.go_on.set()
        assert [(await task).status_code for task in waiting] == [200, 200]
        for words in ("fail", "fail", "fail"):
            await client.post(ASK, json=prompt(words))
        assert (await client.post(ASK, json=prompt("a"))).status_code == 200
    assert model.ended == 6


async def test_metrics_count_by_key_model_and_version(tmp_path: Path) -> None:
    token = KeyRing(tmp_path).add("ann", ["chat", "admin"], None, None, by="test")
    async with asking(GatewaySettings(tmp_path, weights={"parrot": "abc"}), key=token) as client:
        await client.post(ASK, json=prompt("a b"))
        await client.post(ASK, json=prompt("a b c", stream=True))
        await client.post(ASK, json=prompt("a") | {"model": "made-up"})
        await client.get("/made/up")
        found = await measured(client)
    assert found["triptych_tokens_total", "ann", "prompt", "parrot", "abc"] == 5
    assert found["triptych_tokens_total", "ann", "completion", "parrot", "abc"] == 9
    assert found["triptych_requests_total", "ann", "parrot", ASK, "200", "abc"] == 2
    assert found["triptych_requests_total", "ann", "", ASK, "404", ""] == 1
    assert found["triptych_requests_total", "", "", "other", "404", ""] == 1
    assert found["triptych_time_to_first_token_seconds_count", "ann", "parrot", "abc"] == 1
    assert found["triptych_inter_token_seconds_count", "ann", "parrot", "abc"] == 2
    assert found["triptych_model_info", "parrot", "abc"] == 1
    assert found["triptych_requests_running", "parrot"] == 0
    assert not any("made" in label for name in found for label in name)


async def test_the_exception_is_in_the_servers_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's logger may not propagate its records to the root logger.
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])
    async with asking(GatewaySettings()) as client:
        await client.post(ASK, json=prompt("fail"), headers={"X-Request-Id": "mine-2"})
    record = next(record for record in caplog.records if "mine-2" in record.getMessage())
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
